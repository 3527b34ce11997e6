#!/usr/bin/env bash
# Builds the crates for aarch64 and runs their tests under qemu-user, once for each CPU model of $ARM_CPUS: by default plain
# NEON, with int8 dot products, and with int8 matrix products. Prints the NEON levels that none of them exercised.
#
#   tools/test-arm.sh [cargo test arguments]
#
# tools/arm.sh says what that needs.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(tools/arm.sh cargo test --target aarch64-unknown-linux-gnu -p pocketlm-kernels)
lacking=$'neon\nneon-dotprod\nneon-i8mm'
for cpu in ${ARM_CPUS:-cortex-a72 neoverse-n1 max,sve=off}; do
    echo "== cargo test for aarch64 on an emulated $cpu"
    QEMU_CPU=$cpu "${tests[@]}" -p pocketlm-engine "$@"
    # What this processor lacks too is still lacking.
    here=$(QEMU_CPU=$cpu "${tests[@]}" --quiet --test matmul_palette -- --nocapture levels_not_exercised_here |
        sed -n 's/^unexercised levels: //p' | tr -d , | xargs -n 1)
    [ -n "$here" ] || { echo "test-arm: the tests do not say what they exercise" >&2 && exit 1; }
    lacking=$(comm -12 <(sort <<<"$lacking") <(sort <<<"$here"))
done
lacking=${lacking//$'\n'/, }
echo "== NEON levels not exercised: ${lacking:-none}"
