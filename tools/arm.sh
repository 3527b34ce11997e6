#!/usr/bin/env bash
# Runs a command with what builds the crates for aarch64 and runs them under qemu-user, installing that first (240 MB, once).
#
#   tools/arm.sh cargo build --target aarch64-unknown-linux-gnu -p pocketlm-kernels
#   tools/arm.sh sh -c '$EMULATOR target/arm64/aarch64-unknown-linux-gnu/debug/...'
#
# For Debian 12 on x86-64. The compiler's own aarch64 library is not installed with rustup here, so Debian's rustc and its
# arm64 library are used, unpacked into $ARM_PREFIX with a C linker and qemu: nothing in /usr changes, no root is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,/^set/{/^#/p}' "$0" && exit 2; }
prefix=${ARM_PREFIX:-${XDG_CACHE_HOME:-$HOME/.cache}/pocketlm-arm64}
gnu=aarch64-linux-gnu

apt_private() { # an apt of our own that knows both architectures
    mkdir -p "$prefix"/apt/{lists/partial,cache/archives/partial}
    awk 'BEGIN { RS = ""; ORS = "\n\n" } /debian-archive-keyring/' /etc/apt/sources.list.d/*.sources >"$prefix/apt/debian.sources"
    cat >"$prefix/apt/apt.conf" <<EOF
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
Dir::State::lists "$prefix/apt/lists";
Dir::Cache "$prefix/apt/cache";
Dir::Etc::sourcelist "$prefix/apt/debian.sources";
Dir::Etc::sourceparts "-";
EOF
    export APT_CONFIG=$prefix/apt/apt.conf
    apt-get -qq update
}

package_named() { # the newest package of this name pattern among the dependencies of $2
    apt-cache depends "$2" | grep -oE "$1" | sort -uV | tail -n 1
}

set_up() {
    rm -rf "$prefix" && mkdir -p "$prefix"/{root,sysroot,debs}
    apt_private
    local std llvm
    std=$(package_named 'libstd-rust-web-[0-9.]+' libstd-rust-web-dev)
    llvm=$(package_named 'libllvm[0-9]+' "$std")
    (cd "$prefix/debs" && apt-get -qq download rustc-web "$std" "$llvm" libstd-rust-web-dev libstd-rust-web-dev:arm64 \
        "binutils-$gnu" "gcc-12-$gnu" "cpp-12-$gnu" libgcc-12-dev-arm64-cross libgcc-s1-arm64-cross libc6-arm64-cross \
        libc6-dev-arm64-cross linux-libc-dev-arm64-cross qemu-user-static libc6:arm64 libgcc-s1:arm64)
    for deb in "$prefix"/debs/*.deb; do
        case $(basename "$deb") in
            libc6_* | libgcc-s1_*) dpkg-deb -x "$deb" "$prefix/sysroot" ;;
            *) dpkg-deb -x "$deb" "$prefix/root" ;;
        esac
    done
    rm -rf "$prefix/debs" "$prefix/apt"
    # Linker scripts name absolute paths of a system-wide installation.
    grep -lE " /usr/$gnu" "$prefix/root/usr/$gnu/lib/"*.so 2>/dev/null | xargs -r sed -i "s# /usr/$gnu# $prefix/root/usr/$gnu#g"
    mkdir -p "$prefix/bin"
    for tool in rustc rustdoc "$gnu-gcc"; do
        local program=$prefix/root/usr/bin/$tool extra=
        [ "$tool" != "$gnu-gcc" ] || { program+=-12 && extra="-Wl,-rpath-link,$prefix/sysroot/lib/$gnu"; }
        printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%s\nexec %s %s "$@"\n' \
            "$prefix/root/usr/lib/x86_64-linux-gnu" "$program" "$extra" >"$prefix/bin/$tool"
        chmod +x "$prefix/bin/$tool"
    done
    touch "$prefix/ready"
}

[ -e "$prefix/ready" ] || set_up
export RUSTC=$prefix/bin/rustc RUSTDOC=$prefix/bin/rustdoc CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/arm64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$prefix/bin/$gnu-gcc
export EMULATOR="$prefix/root/usr/bin/qemu-aarch64-static -L $prefix/sysroot"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$EMULATOR
exec "$@"
