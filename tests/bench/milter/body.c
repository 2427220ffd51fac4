/* body SOCKET: a filter on libmilter that takes the body, replaces it by itself and adds a header. It spares itself
 * every reply that the MTA lets it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <libmilter/mfapi.h>

struct body {
	unsigned char *bytes;
	size_t len, room;
};

static void drop(SMFICTX *ctx)
{
	struct body *body = smfi_getpriv(ctx);

	if (body != NULL) {
		free(body->bytes);
		free(body);
		smfi_setpriv(ctx, NULL);
	}
}

static sfsistat negotiate(SMFICTX *ctx, unsigned long f0, unsigned long f1, unsigned long f2, unsigned long f3,
			  unsigned long *pf0, unsigned long *pf1, unsigned long *pf2, unsigned long *pf3)
{
	(void)ctx, (void)f2, (void)f3;
	*pf0 = (SMFIF_ADDHDRS | SMFIF_CHGBODY) & f0;
	*pf1 = (SMFIP_NOCONNECT | SMFIP_NOHELO | SMFIP_NOMAIL | SMFIP_NORCPT | SMFIP_NODATA | SMFIP_NOHDRS |
		SMFIP_NOEOH | SMFIP_NOUNKNOWN | SMFIP_NR_BODY) & f1;
	*pf2 = *pf3 = 0;
	return SMFIS_CONTINUE;
}

static sfsistat body(SMFICTX *ctx, unsigned char *bytes, size_t len)
{
	struct body *body = smfi_getpriv(ctx);

	if (body == NULL) {
		if ((body = calloc(1, sizeof *body)) == NULL)
			return SMFIS_TEMPFAIL;
		smfi_setpriv(ctx, body);
	}
	if (body->len + len > body->room) {
		size_t room = 2 * (body->len + len);
		unsigned char *more = realloc(body->bytes, room);

		if (more == NULL)
			return SMFIS_TEMPFAIL;
		body->bytes = more;
		body->room = room;
	}
	memcpy(body->bytes + body->len, bytes, len);
	body->len += len;
	return SMFIS_CONTINUE;
}

static sfsistat eom(SMFICTX *ctx)
{
	struct body *body = smfi_getpriv(ctx);
	sfsistat verdict = SMFIS_ACCEPT;

	if (body != NULL && (smfi_addheader(ctx, "X-Bench", "yes") != MI_SUCCESS ||
			     smfi_replacebody(ctx, body->bytes, (int)body->len) != MI_SUCCESS))
		verdict = SMFIS_TEMPFAIL;
	drop(ctx);
	return verdict;
}

static sfsistat over(SMFICTX *ctx)
{
	drop(ctx);
	return SMFIS_CONTINUE;
}

int main(int argc, char **argv)
{
	struct smfiDesc filter;

	memset(&filter, 0, sizeof filter);
	filter.xxfi_name = "body";
	filter.xxfi_version = SMFI_VERSION;
	filter.xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGBODY;
	filter.xxfi_negotiate = negotiate;
	filter.xxfi_body = body;
	filter.xxfi_eom = eom;
	filter.xxfi_abort = over;
	filter.xxfi_close = over;
	if (argc != 2 || smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS) {
		fprintf(stderr, "usage: body unix:/PATH|inet:PORT@HOST\n");
		return 64;
	}
	return smfi_main() == MI_SUCCESS ? 0 : 1;
}
