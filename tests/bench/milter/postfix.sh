# shellcheck shell=bash disable=SC2154 # variables of run
# smtp-source, a private Postfix with each filter, smtp-sink. Sourced by run.

# Each filter, over each transport, has an smtpd(8) port of its own.
readonly RECIPIENT=ann@example.net SENDER=news@shop.example

sink_port='' expected=0 with_mailtap=0
declare -A smtp_port=()

start_postfix() {
    local ports key subject options=() next=2 as=()
    mapfile -t ports < <("$LIB/free-port" $((2 + 2 * ${#in_postfix[@]})))
    sink_port=${ports[0]} smtp_port[none]=${ports[1]}
    ((EUID != 0)) || as=(-u postfix)
    setsid /usr/sbin/smtp-sink "${as[@]}" -c "127.0.0.1:$sink_port" 1000 </dev/null >"$work/sink" 2>"$work/log/sink" &
    pids+=("$!")
    for subject in "${in_postfix[@]}"; do
        for key in "${transports[@]/#/$subject }"; do
            smtp_port[$key]=${ports[next]}
            options+=(--master "127.0.0.1:${ports[next]} inet n - n - - smtpd -o smtpd_milters=${postfix_address[$key]}")
            next=$((next + 1))
        done
    done
    wait_until 10 is_listening "$sink_port" || die "smtp-sink does not listen"
    # The header check is what docs/postfix.md has mailtap's users set.
    "$LIB/postfix" start --dir "$work/relay" --port "${smtp_port[none]}" --relayhost "127.0.0.1:$sink_port" --owner $$ \
        --set 'milter_default_action = tempfail' \
        --set 'milter_header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}' "${options[@]}"
    for key in "${!smtp_port[@]}"; do
        wait_until 10 is_listening "${smtp_port[$key]}" || die "no smtpd for $key"
    done
}

# drained: everything sent so far has reached the sink, whose running counter ends in mesg=NUMBER.
drained() {
    local counter
    counter=$(tail -c 80 "$work/sink" | tr '\r' '\n' | sed -n 's/.*mesg=\([0-9]*\).*/\1/p' | tail -n 1)
    ((${counter:-0} >= expected))
}

# drain: as wait_until, but looks more often, since it is part of what is measured.
drain() {
    local tries=3000
    until drained; do
        ((tries-- > 0)) || die "of $expected messages some did not arrive: $(tail -c 60 "$work/sink" | tr '\r' '\n' | tail -n 1)"
        sleep 0.02
    done
}

# sent KEY COUNT: keeps the books for drained and for check_mailtap.
sent() {
    expected=$((expected + $2))
    [[ $1 != mailtap* ]] || with_mailtap=$((with_mailtap + $2))
}

# cpu_ticks KEY: user and system time of a filter in hundredths of a second.
cpu_ticks() {
    local stat fields
    [[ $1 != none ]] || {
        echo 0
        return
    }
    stat=$(<"/proc/${pid_of[$1]}/stat")
    read -ra fields <<<"${stat##*) }"
    echo $((fields[11] + fields[12]))
}

# machine_ticks: idle time and all time of all processors, in hundredths of a second.
machine_ticks() {
    local fields tick sum=0
    read -ra fields </proc/stat
    for tick in "${fields[@]:1:8}"; do sum=$((sum + tick)); done
    echo "$((fields[4] + fields[5])) $sum"
}

# through KEY BYTES MESSAGES: measures once and records it.
through() {
    local key=$1 bytes=$2 messages=$3 began accepted delivered ticks idle all idle_before all_before
    ticks=$(cpu_ticks "$key")
    read -r idle_before all_before < <(machine_ticks)
    began=${EPOCHREALTIME/./}
    /usr/sbin/smtp-source "${source_options[@]}" -s "$sessions" -m "$messages" -f "$SENDER" -t "$RECIPIENT" \
        -F "$work/newsletter-$bytes" "127.0.0.1:${smtp_port[$key]}" || die "smtp-source failed on $key"
    accepted=${EPOCHREALTIME/./}
    sent "$key" "$messages"
    drain
    delivered=${EPOCHREALTIME/./}
    read -r idle all < <(machine_ticks)
    ticks=$(($(cpu_ticks "$key") - ticks))
    record "{\"part\":\"postfix\",\"subject\":\"${key% *}\",\"transport\":\"${key#* }\",\"bytes\":$bytes" \
        ",\"accepted_per_s\":$((messages * 1000000 / (accepted - began)))" \
        ",\"delivered_per_s\":$((messages * 1000000 / (delivered - began)))" \
        ",\"machine_busy_percent\":$((100 - 100 * (idle - idle_before) / (all - all_before + 1)))" \
        ",\"cpu_us_per_message\":$((ticks * 10000 / messages))}"
}

# latency BYTES: one session for each key, a message through each in turn.
latency() {
    local bytes=$1 key subject keys=(none) ways=() line
    for subject in "${in_postfix[@]}"; do keys+=("${transports[@]/#/$subject }"); done
    for key in "${keys[@]}"; do
        ways+=("$key=${smtp_port[$key]}")
        sent "$key" "$latency_messages"
    done
    "$PYTHON" "$HERE/latency.py" "$work/newsletter-$bytes" "$SENDER" "$RECIPIENT" "$latency_messages" "${ways[@]}" >"$work/latency" ||
        die "the SMTP client failed"
    while read -r line; do record "{\"part\":\"latency\",\"bytes\":$bytes,${line#\{}"; done <"$work/latency"
    drain
}

# check_mailtap: every message that went through mailtap was rewritten, else its figures are those of something else.
check_mailtap() {
    local rewritten
    rewritten=$(grep -c 'milter-header-info: header X-Mailtap-Ref' "$work/relay/log/maillog" || true)
    ((rewritten == with_mailtap)) || die "mailtap tracked $rewritten of $with_mailtap messages"
    ! grep -h '"outcome":"failed"\|"outcome":"headers_only"' "$work"/log/mailtap-* || die "mailtap did not rewrite these"
}

run_postfix() {
    local round bytes key keys subjects=("${in_postfix[@]}") messages
    start_postfix
    # Its processes start on the first message.
    through none "$SMALL_BYTES" 50
    sed -i '$d' "$results"
    for ((round = 1; round <= rounds; round++)); do
        say "within Postfix, round $round of $rounds"
        mapfile -t keys < <(each_way "$round")
        for bytes in "$SMALL_BYTES" "$LARGE_BYTES"; do
            messages=$small_messages
            ((bytes == SMALL_BYTES)) || messages=$large_messages
            for key in none "${keys[@]}"; do through "$key" "$bytes" "$messages"; done
            latency "$bytes"
        done
    done
    check_mailtap
}
