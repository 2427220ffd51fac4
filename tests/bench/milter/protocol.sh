# shellcheck shell=bash disable=SC2154 # variables of run
# The filters alone, under a load that speaks the milter protocol as Postfix does. Sourced by run.

readonly MANY_CONNECTIONS=500

# load KIND "SUBJECT TRANSPORT" BYTES OPTION…: measures once and records it.
load() {
    local kind=$1 key=$2 bytes=$3 found
    shift 3
    found=$("$LOAD" "${load_address[$key]}" --pid "${pid_of[$key]}" --edits "${EDITS[${key% *}]}" --body "$bytes" "$@") ||
        die "the load on $key failed"
    record "{\"part\":\"$kind\",\"subject\":\"${key% *}\",\"transport\":\"${key#* }\",\"bytes\":$bytes,${found#\{}"
}

run_protocol() {
    local round bytes key keys subjects=("${SUBJECTS[@]}")
    say "memory, at 1 and at $MANY_CONNECTIONS connections"
    for key in "${subjects[@]/%/ unix}"; do
        load memory "$key" "$LARGE_BYTES" --connections 1 --messages 20
        load memory "$key" "$LARGE_BYTES" --connections "$MANY_CONNECTIONS" --messages "$MANY_CONNECTIONS"
    done
    for ((round = 1; round <= rounds; round++)); do
        say "the protocol alone, round $round of $rounds"
        mapfile -t keys < <(each_way "$round")
        for bytes in "$SMALL_BYTES" "$LARGE_BYTES"; do
            for key in "${keys[@]}"; do load protocol "$key" "$bytes" --connections "$sessions" --seconds "$seconds"; done
        done
    done
}
