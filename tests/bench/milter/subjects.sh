# shellcheck shell=bash disable=SC2034,SC2154 # variables of run, and for it
# The filters that are compared, each listening twice: on a Unix socket and over TCP. Sourced by run.

readonly RELEASE=${CARGO_TARGET_DIR:-$ROOT/target}/release
readonly MAILTAP=$RELEASE/mailtap LOAD=$RELEASE/examples/load

# Name and the number of edits in each answer: by it the load knows that a filter does what it should.
readonly SUBJECTS=(c-noop c-body python-noop python-body crate-null crate-body crate-grow mailtap mailtap-normal)
declare -rA EDITS=([c-noop]=0 [c-body]=2 [python-noop]=0 [python-body]=2 [crate-null]=0 [crate-body]=2 [crate-grow]=2
    [mailtap]=2 [mailtap-normal]=2)

# What mailtap makes of a newsletter, in percent of its size: crate-grow answers as much without any work, so that what
# Postfix itself takes for it can be told from what mailtap takes.
growth=''
pids=()
# By "NAME TRANSPORT": its process, its address for the load and for Postfix.
declare -A pid_of=() load_address=() postfix_address=()

# init_mailtap NAME LISTEN SYNC: a configuration as an administrator gets it, in its own directory.
init_mailtap() {
    local name=$1 listen=$2 sync=$3 file=$work/$1/mailtap.toml
    "$MAILTAP" init --dir "$work/$name" --tracking-url https://t.shop.example --domain shop.example \
        --milter-listen "$listen" --postfix-queue-dir "$work/relay/queue" >"$work/log/$name.init" 2>&1 ||
        die "mailtap init failed: see $work/log/$name.init"
    # Several of them run here, so none has an admin address; and the socket is for whoever runs this, too.
    sed -i -e 's/^#\?milter = "127.*/milter = ""/' -e 's/^#\?socket_mode = .*/socket_mode = "0666"/' \
        -e 's/^#\?socket_group = .*/socket_group = ""/' -e "s/^#\\?sync = .*/sync = \"$sync\"/" "$file"
    [[ $(grep -c -E "^(milter = \"\"|socket_mode = \"0666\"|socket_group = \"\"|sync = \"$sync\")$" "$file") == 4 ]] ||
        die "the settings did not get into $file"
}

# command_of SUBJECT TRANSPORT PORT: fills the array `command` and the addresses.
command_of() {
    local subject=$1 transport=$2 port=$3 key="$1 $2" socket=$work/$1.sock theirs ours
    if [[ $transport == unix ]]; then
        theirs=unix:$socket ours=unix:$socket
        load_address[$key]=unix:$socket postfix_address[$key]=unix:$socket
    else
        theirs=inet:$port@127.0.0.1 ours=127.0.0.1:$port
        load_address[$key]=127.0.0.1:$port postfix_address[$key]=inet:127.0.0.1:$port
    fi
    case $subject in
    c-*) command=("$work/${subject#c-}" "$theirs") ;;
    python-*) command=("$PYTHON" "$HERE/filter.py" "${subject#python-}" "$theirs") ;;
    crate-null) command=("$RELEASE/examples/plain" null "$ours") ;;
    crate-body) command=("$RELEASE/examples/plain" replace "$ours") ;;
    crate-grow) command=("$RELEASE/examples/plain" grow "$ours" "$growth") ;;
    mailtap | mailtap-normal)
        local sync=full
        [[ $subject == mailtap ]] || sync=normal
        init_mailtap "$subject-$transport" "${postfix_address[$key]}" "$sync"
        # As systemd/mailtap-milter.service has it.
        command=(env MALLOC_ARENA_MAX=2 "$MAILTAP" --config "$work/$subject-$transport/mailtap.toml" milter)
        ;;
    esac
}

# measure_growth: sets growth.
measure_growth() {
    local before after newsletter=$work/newsletter-$LARGE_BYTES
    init_mailtap growth inet:127.0.0.1:1 full
    before=$(wc -c <"$newsletter")
    after=$("$MAILTAP" --config "$work/growth/mailtap.toml" rewrite --sender "$SENDER" --recipient "$RECIPIENT" \
        <"$newsletter" 2>"$work/log/growth" | wc -c)
    growth=$((100 * after / before))
    ((growth > 100)) || die "mailtap rewrote nothing: see $work/log/growth"
}

# listens SUBJECT TRANSPORT
listens() {
    case $2 in
    unix) [[ -S $work/$1.sock ]] ;;
    tcp) is_listening "${load_address[$1 $2]#*:}" ;;
    esac
}

start_subjects() {
    local subject transport ports command next=0
    measure_growth
    mapfile -t ports < <("$LIB/free-port" "${#SUBJECTS[@]}")
    for subject in "${SUBJECTS[@]}"; do
        for transport in "${transports[@]}"; do
            command_of "$subject" "$transport" "${ports[next]}"
            # Not every filter sets the mode of its socket, and Postfix must be able to write to it.
            (umask 0 && exec setsid "${command[@]}") </dev/null >"$work/log/$subject-$transport" 2>&1 &
            pids+=("$!")
            pid_of["$subject $transport"]=$!
        done
        next=$((next + 1))
    done
    for subject in "${SUBJECTS[@]}"; do
        for transport in "${transports[@]}"; do
            wait_until 20 listens "$subject" "$transport" || die "$subject does not listen ($transport)"
        done
    done
}

# each_way ROUND: the keys "NAME TRANSPORT" of all subjects given by the array `subjects`, back to front every other
# round, so that none always follows the same other.
each_way() {
    local round=$1 subject transport all=() at
    for subject in "${subjects[@]}"; do
        for transport in "${transports[@]}"; do all+=("$subject $transport"); done
    done
    for ((at = 0; at < ${#all[@]}; at++)); do
        if ((round % 2)); then echo "${all[at]}"; else echo "${all[-1 - at]}"; fi
    done
}
