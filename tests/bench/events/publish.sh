# The part of the spool: how many events are published, by batch, publishers and sync, and what stays of those that were sent.
# shellcheck shell=bash disable=SC2154 # variables of run

publish() {
    local options=(--rounds "$rounds" --dir "$work")
    ((!quick)) || options+=(--ms 150 --remembered 20000)
    say "building (a few minutes the first time)"
    (cd "$ROOT" && cargo bench --locked --quiet --bench publish --no-run) || die "the build failed"
    say "publishing to the spool"
    (cd "$ROOT" && cargo bench --locked --quiet --bench publish -- "${options[@]}") >>"$results"
}
