# shellcheck shell=bash
# How the demo prints, and how it reads a delivered mail; sourced by run.

step_number=0
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    readonly BOLD=$'\e[1m' DIM=$'\e[2m' PLAIN=$'\e[0m'
else
    readonly BOLD='' DIM='' PLAIN=''
fi

# step TEXT: a numbered heading.
step() {
    ((++step_number))
    printf '\n%s%d. %s%s\n' "$BOLD" "$step_number" "$1" "$PLAIN"
}

# detail TEXT: a line below it.
detail() { printf '   %s\n' "$1"; }

# indent: the same for what other programs print.
indent() { sed "s/^/     $DIM/; s/\$/$PLAIN/"; }

# show_log MAILLOG: the lines that the tap correlates, without what is the same everywhere.
show_log() {
    grep -E 'milter-header-info|status=(sent|bounced)' "$1" | grep -vF 'to=<news@' |
        sed -E 's/^[A-Z][a-z]{2} [ 0-9]{2} ([0-9:]{8}) [^ ]+ /\1 /; s/\[[0-9]+\]: /: /; s/ from unknown\[127\.0\.0\.1\];.*//
                s/, relay=127[^,]*, delay=.*, dsn/, … dsn/; s/(status=[a-z]+ \(.{60}).*/\1…/' | indent
}

# decode_quoted_printable: good enough to find URLs.
decode_quoted_printable() { perl -0pe 's/\r//g; s/=\n//g; s/=([0-9A-F]{2})/chr hex $1/ge'; }

# hrefs FILE PREFIX: the targets that begin so, entities decoded, one a line.
hrefs() {
    PREFIX=$2 perl -0ne 'while (/<a\b[^>]*?\bhref=(["\x27]?)([^"\x27>\s]+)\1/gi) {
        my $url = $2; $url =~ s/&amp;/&/g; print "$url\n" if index($url, $ENV{PREFIX}) == 0 }' "$1"
}

# pixel_of FILE PREFIX: the first image that begins so.
pixel_of() {
    PREFIX=$2 perl -0ne 'while (/<img\b[^>]*?\bsrc=(["\x27]?)([^"\x27>\s]+)\1/gi) {
        if (index($2, $ENV{PREFIX}) == 0) { print "$2\n"; last } }' "$1"
}
