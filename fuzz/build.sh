#!/usr/bin/env bash
# usage: build.sh DIR
#
# Builds all fuzz targets into DIR with their corpora and `go.sh`. They are linked statically, without a sanitizer, and run on any Linux of this
# architecture. Arithmetic that overflows and assertions that fail are findings. Needs a nightly toolchain, a C++ compiler and static libstdc++.
set -euo pipefail
(($# == 1)) || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
# What `cargo fuzz` passes with `-s none`, and static linking. Places in the code are not needed: panics have theirs.
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg=fuzzing
    -Ctarget-feature=+crt-static -Crelocation-model=static)
export CARGO_PROFILE_RELEASE_DEBUG=0 RUSTFLAGS="${flags[*]}"
build() { cargo +nightly build --release --target "$triple" "$@"; }
# libFuzzer without its own memcmp and the like, which look for those of a shared libc.
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
library=$target/libfuzzer.a
if [[ ! -e $library ]]; then
    build --package libfuzzer-sys
    cp "$(ls -t "$target/$triple"/release/build/libfuzzer-sys-*/out/libfuzzer.a | head -1)" "$library.new"
    ar t "$library.new" | grep Interceptors | xargs ar d "$library.new"
    mv "$library.new" "$library"
fi
export CUSTOM_LIBFUZZER_PATH=$library
build --bins
for source in fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    strip -o "$directory/$name" "$target/$triple/release/$name"
done
rm -rf "$directory/corpus"
cp -r corpus go.sh "$directory"
