#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs each fuzz target of a build folder for some seconds, from a copy of its corpus.
#   packaging/fuzz.sh BUILD_FOLDER SECONDS
set -euo pipefail
build=${1:?usage: fuzz.sh BUILD_FOLDER SECONDS}
seconds=${2:?usage: fuzz.sh BUILD_FOLDER SECONDS}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

count=0
while IFS= read -r target; do
    name=$(basename "$target")
    work="$build/corpus/$name"
    mkdir -p "$work" "$build/crashes"
    seeds="$root/tests/fuzz/corpus/${name#fuzz_}"
    arguments=("$work")
    [[ ! -d "$seeds" ]] || arguments+=("$seeds")
    echo "fuzz: $name for $seconds s"
    "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$build/crashes/$name-" "${arguments[@]}" 2>&1 |
        grep -E '^(stat::|==|SUMMARY|artifact|INFO: seed)' || [[ ${PIPESTATUS[0]} -eq 0 ]]
    count=$((count + 1))
done < <(find "$build" -type f -name 'fuzz_*' -executable)
[[ $count -gt 0 ]] || { echo "fuzz: no targets below $build" >&2; exit 1; }
