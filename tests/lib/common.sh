# shellcheck shell=bash
# What the scripts beside this file share; sourced, never run.
#
# Everything here prints to stderr, so that a script's stdout stays its answer.

# say TEXT…: one line of progress.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT…: one line, then exit 1.
die() {
    say "$*"
    exit 1
}

# need_value OPTION COUNT: an option that takes a value must have got one.
need_value() {
    (($2 >= 2)) || {
        say "$1 needs a value (see --help)"
        exit 64
    }
}

# usage_error TEXT…
usage_error() {
    say "$* (see --help)"
    exit 64
}

# print_help FILE: the comment at the head of the script is its manual.
print_help() { sed -n '2,/^$/{/^#/!q;s/^# \{0,1\}//p}' "$1"; }

# become_root ARGUMENT…: Postfix and RabbitMQ change user, which only root can; starts the script again with sudo.
become_root() {
    ((EUID != 0)) || return 0
    command -v sudo >/dev/null || die "has to be run by root, and there is no sudo here"
    exec sudo -- env MAILTAP_TEST_RUN="${MAILTAP_TEST_RUN:-}" "$(readlink -f -- "$0")" "$@"
}

# caller_uid: the person behind sudo, else the unprivileged user nobody.
caller_uid() {
    if [[ ${SUDO_UID:-0} =~ ^[1-9][0-9]*$ ]]; then
        printf '%s\n' "$SUDO_UID"
    else
        id -u nobody
    fi
}

# caller_gid: as caller_uid, for the group.
caller_gid() {
    if [[ ${SUDO_UID:-0} =~ ^[1-9][0-9]*$ && ${SUDO_GID:-0} =~ ^[1-9][0-9]*$ ]]; then
        printf '%s\n' "$SUDO_GID"
    else
        id -g nobody
    fi
}

# place DIR USER ENTRY…: creates DIR so that USER can enter it, and prints where it really is.
#
# A directory of mktemp -d is 0700, and so may be any parent. The parents are not ours to open up: when USER cannot
# come through them, the real directory is made below /tmp, and DIR/instance and DIR/ENTRY… lead to it. put_back undoes
# this, so that nothing stays below /tmp and DIR keeps its log.
place() {
    local dir=$1 user=$2 real entry
    shift 2
    mkdir -p -- "$dir"
    chmod 0755 -- "$dir"
    if [[ -L $dir/instance ]]; then
        readlink -f -- "$dir/instance"
    elif runuser -u "$user" -- test -x "$dir"; then
        readlink -f -- "$dir"
    else
        real=$(mktemp -d "/tmp/mailtap-$user.XXXXXXXX")
        chmod 0755 -- "$real"
        for entry in "$@"; do
            [[ ! -e $dir/$entry ]] || mv -- "$dir/$entry" "$real/"
            ln -s -- "$real/$entry" "$dir/$entry"
        done
        ln -s -- "$real" "$dir/instance"
        printf '%s\n' "$real"
    fi
}

# real_dir DIR: where place put it; fails when there is nothing.
real_dir() {
    if [[ -L $1/instance ]]; then readlink -e -- "$1/instance"; else readlink -e -- "$1"; fi
}

# put_back DIR ENTRY…: after a stop, the entries move from below /tmp to DIR.
put_back() {
    local dir=$1 real entry
    shift
    [[ -L $dir/instance ]] || return 0
    real=$(readlink -f -- "$dir/instance")
    for entry in "$@"; do
        [[ ! -L $dir/$entry ]] || rm -f -- "$dir/$entry"
        [[ ! -e $real/$entry ]] || mv -- "$real/$entry" "$dir/"
    done
    rm -rf -- "$real" "$dir/instance"
}

# is_listening PORT: does anything listen on this TCP port?
is_listening() {
    local hex
    hex=$(printf ':%04X' "$1")
    awk -v port="$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { found = 1 } END { exit !found }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

# wait_until SECONDS COMMAND…: tries ten times a second.
wait_until() {
    local tries=$(($1 * 10))
    shift
    while ! "$@"; do
        ((tries-- > 0)) || return 1
        sleep 0.1
    done
}

# gone PID…: none of these processes is left (a zombie counts as gone).
gone() {
    local pid state
    for pid in "$@"; do
        state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null) || continue
        [[ -z $state || $state == Z ]] || return 1
    done
}

# end_processes SECONDS PID…: SIGTERM, then after that many seconds SIGKILL.
end_processes() {
    local seconds=$1
    shift
    (($# > 0)) || return 0
    kill -TERM "$@" 2>/dev/null || true
    wait_until "$seconds" gone "$@" || {
        kill -KILL "$@" 2>/dev/null || true
        wait_until 5 gone "$@"
    }
}

# start_time PID: when it started, in clock ticks, so that a reused process id is not mistaken for it.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    cut -d ' ' -f 20 <<<"$stat"
}

# stop_after_owner FILE PID COMMAND…: in the background, runs COMMAND once the process PID has ended, unless FILE is
# gone by then.
stop_after_owner() {
    local file=$1 owner=$2 started
    shift 2
    started=$(start_time "$owner") || die "--owner $owner: no such process"
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid --fork bash -c '. "$1"; file=$2 owner=$3 started=$4; shift 4; cd /
        while [[ -e $file && $(start_time "$owner") == "$started" ]]; do sleep 1; done
        [[ ! -e $file ]] || exec "$@"' \
        owner-watch "${BASH_SOURCE[0]}" "$file" "$owner" "$started" "$@" </dev/null >/dev/null 2>&1
}
