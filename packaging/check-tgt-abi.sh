#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Compares the layout that csrc/frontends/tgt/tgt_abi.h asserts with tgt's own source.
#
#   packaging/check-tgt-abi.sh [FOLDER]
#
# FOLDER holds tgt's source (the one with usr/). Without it Debian's source package of the installed
# tgt is fetched, with a list of sources of its own: the system's stay as they are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
header=$root/csrc/frontends/tgt/tgt_abi.h
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints the folder of the source that was fetched.
fetch() {
    local release apt
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$work/lists/partial" "$work/source"
    # The mirrors that this machine uses, but for source packages.
    { grep -hsE '^deb(-src)? ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list || true; } |
        sed -E 's/^deb(-src)? /deb-src /' >"$work/sources.list"
    if [[ ! -s "$work/sources.list" ]]; then
        local uri
        for uri in $(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null |
            tr ' ' '\n' | grep -v security | sort -u); do
            echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $release main"
        done >"$work/sources.list"
    fi
    apt=(-o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
         -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=)
    apt-get "${apt[@]}" -qq update >&2
    (cd "$work/source" && apt-get "${apt[@]}" -qq source --download-only tgt >&2 &&
        tar -xf tgt_*.orig.tar.* && ls -d "$work"/source/*/)
}

tgt=${1:-}
[[ -n "$tgt" ]] || tgt=$(fetch | tail -n 1)
if [[ ! -f "$tgt/usr/tgtd.h" ]]; then
    echo "check-tgt-abi: $tgt is not tgt's source: it has no usr/tgtd.h" >&2
    exit 2
fi

# A program in tgt's tree that prints what the compiler makes of its structs, against our numbers.
{
    cat <<'END'
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include "list.h"
#include "tgtd.h"
#include "target.h"
static int bad;
static int count;
static void check(const char *what, unsigned long theirs, unsigned long ours) {
    count++;
    if (theirs != ours) {
        printf("%s: %lu in tgt, %lu in tgt_abi.h\n", what, theirs, ours);
        bad = 1;
    }
}
int main(void) {
END
    sed -nE 's/^TGT_SIZE\(([a-z_]+), ([a-z_]+), ([0-9]+)\);/check("sizeof(struct \2)", sizeof(struct \2), \3);/p' "$header"
    sed -nE 's/^TGT_OFFSET\(([a-z_]+), ([a-z_]+), ([a-z_]+), ([a-z_.]+), ([0-9]+)\);/check("\3.\4", offsetof(struct \3, \4), \5);/p' "$header"
    cat <<'END'
    printf("%d sizes and offsets compared\n", count);
    return bad;
}
END
} >"$work/check.c"
expected=$(grep -cE '^TGT_(SIZE|OFFSET)\(' "$header")
found=$(grep -c '^check(' "$work/check.c")
if [[ "$found" != "$expected" ]]; then
    echo "check-tgt-abi: $expected lines in tgt_abi.h, but $found were understood" >&2
    exit 1
fi
gcc -w -I"$tgt/usr" -o "$work/check" "$work/check.c"
"$work/check"

# The results of management calls that the module returns.
for name in TGTADM_SUCCESS TGTADM_UNKNOWN_ERR TGTADM_NOMEM TGTADM_INVALID_REQUEST; do
    ours=$(sed -nE "s/^ *$name = ([0-9]+),/\1/p" "$header")
    theirs=$(printf '#include <stdio.h>\n#include "tgtadm_error.h"\nint main(void) { printf("%%d", %s); }\n' "$name" |
        gcc -w -x c -I"$tgt/usr" -o "$work/value" - && "$work/value")
    if [[ "$ours" != "$theirs" ]]; then
        echo "$name: $theirs in tgt, $ours in tgt_abi.h"
        exit 1
    fi
done
echo "check-tgt-abi: tgt_abi.h agrees with $(basename "$tgt")"
