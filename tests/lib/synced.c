/*
 * Remembers what was synced: whenever a process asks for a spool's file to be synced, a copy of it goes to the directory
 * $SYNCED, and the disk is spared. Loaded by LD_PRELOAD, for src/queue/spool/power_tests.rs.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	_exit(99);
}

static void copy(int from, const char *name)
{
	char piece[65536]; /* several threads sync at once */
	char temporary[4200], path[4200];
	off_t at = 0;
	ssize_t bytes;
	int to;

	snprintf(temporary, sizeof temporary, "%s/.%s", getenv("SYNCED"), name);
	snprintf(path, sizeof path, "%s/%s", getenv("SYNCED"), name);
	to = open(temporary, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (to < 0)
		fail(temporary);
	while ((bytes = pread(from, piece, sizeof piece, at)) > 0) {
		if (write(to, piece, (size_t)bytes) != bytes)
			fail(temporary);
		at += bytes;
	}
	/* Whole or not at all, also if the process is killed just now. */
	if (bytes < 0 || close(to) != 0 || rename(temporary, path) != 0)
		fail(path);
}

static int sync_file(int file)
{
	char link[64], path[4096];
	const char *name;
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	length = readlink(link, path, sizeof path - 1);
	if (length < 0 || getenv("SYNCED") == NULL)
		return 0;
	path[length] = '\0';
	name = strrchr(path, '/');
	if (name != NULL && (strcmp(name, "/spool.db") == 0 || strcmp(name, "/spool.db-wal") == 0 ||
			     strncmp(name, "/inbox-", 7) == 0)) {
		int again = open(path, O_RDONLY);
		if (again < 0)
			fail(path);
		copy(again, name + 1);
		close(again);
	}
	return 0;
}

int fsync(int file)
{
	return sync_file(file);
}

int fdatasync(int file)
{
	return sync_file(file);
}
