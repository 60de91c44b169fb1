#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs the Debian packages that Copygate needs and that are missing; says which, and does nothing
# when nothing is missing. Runs as root or through sudo.
#
#   packaging/install-deps.sh [--dry-run] [GROUP...]
#
# Groups: build (compile), run (nbdkit, tgtd, image tools, the demo), test (C and interop tests), lint,
# fuzz, vm (the tests in a virtual machine), bench. Default: build run.
set -euo pipefail

declare -A packages=(
    [build]="gcc libc6-dev make pkg-config protobuf-compiler nanopb libnanopb-dev liburing-dev
             libisal-dev nettle-dev python3 python3-dev python3-venv nbdkit-plugin-dev"
    [run]="nbdkit nbdkit-plugin-python libnbd-bin qemu-utils fio e2fsprogs tgt"
    [test]="libcmocka-dev python3-libnbd xfsprogs libiscsi-dev libiscsi-bin qemu-block-extra
            nftables"
    [lint]="clang-format-14"
    [fuzz]="clang-14 libclang-rt-14-dev libcmocka-dev"
    [vm]="qemu-system-x86 qemu-block-extra linux-image-amd64 busybox-static nbd-client iproute2 kmod
          e2fsprogs mmdebstrap
          xfsprogs fio open-iscsi multipath-tools sg3-utils"
    [bench]="strace tgt libiscsi-dev"
)

usage() {
    sed -n '/^#   packaging/,/^# fuzz/s/^# \{0,1\}//p' "$0"
}

dry_run=no
groups=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        -n | --dry-run) dry_run=yes ;;
        *)
            if [[ -z "${packages[$argument]:-}" ]]; then
                echo "install-deps: no group '$argument'; groups: ${!packages[*]}" >&2
                exit 2
            fi
            groups+=("$argument")
            ;;
    esac
done
[[ ${#groups[@]} -gt 0 ]] || groups=(build run)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "install-deps: this is not a Debian system (no apt-get): install these by hand:" >&2
    for group in "${groups[@]}"; do echo "  $group: "${packages[$group]} >&2; done
    exit 1
fi

missing=()
for group in "${groups[@]}"; do
    for package in ${packages[$group]}; do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
        [[ "$status" == installed ]] || missing+=("$package")
    done
done
if [[ ${#missing[@]} -eq 0 ]]; then
    echo "install-deps: nothing missing (${groups[*]})"
    exit 0
fi

echo "install-deps: installing ${missing[*]}"
[[ "$dry_run" == no ]] || exit 0

as_root=()
if [[ $EUID -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "install-deps: needs root: run it as root, or install sudo" >&2
        exit 1
    fi
    as_root=(sudo)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get
     -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
# Debian's package of tgt starts a tgtd of its own, which listens at port 3260 of every address, and again
# at each boot. We run our own: one that was installed by us is not started, and left switched off. A tgt
# that was there before is somebody's, and not touched.
policy=/usr/sbin/policy-rc.d
new_tgt=no
if [[ " ${missing[*]} " == *" tgt "* ]]; then
    new_tgt=yes
    if [[ ! -e "$policy" ]]; then
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\n[ "$1" = tgt ] || [ "$1" = tgt.service ] && exit 101\nexit 0\n' |
            "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 0755 "$policy"
    fi
fi
install=("${apt[@]}" install --yes --no-install-recommends "${missing[@]}")
# The lists of packages may be missing or old: fetch them only when the first try fails.
if ! "${install[@]}" </dev/null; then
    echo "install-deps: fetching the lists of packages, then once more"
    "${apt[@]}" update </dev/null
    "${install[@]}" </dev/null
fi
if [[ "$new_tgt" == yes ]]; then
    if command -v systemctl >/dev/null; then
        "${as_root[@]}" systemctl disable tgt.service >/dev/null 2>&1 || true
    else
        "${as_root[@]}" update-rc.d tgt disable >/dev/null 2>&1 || true
    fi
    echo "install-deps: Debian's tgt.service is left switched off: it would take port 3260 of every address"
fi
echo "install-deps: done"
