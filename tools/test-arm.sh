#!/usr/bin/env bash
# Builds the crates for aarch64 and runs their tests under qemu-user, once for each CPU model of $ARM_CPUS.
#
#   tools/test-arm.sh [cargo test arguments]
#
# tools/arm.sh says what that needs.
set -euo pipefail
cd "$(dirname "$0")/.."
for cpu in ${ARM_CPUS:-cortex-a72 neoverse-n1}; do
    echo "== cargo test for aarch64 on an emulated $cpu"
    QEMU_CPU=$cpu tools/arm.sh cargo test --target aarch64-unknown-linux-gnu -p pocketlm-kernels -p pocketlm-engine "$@"
done
