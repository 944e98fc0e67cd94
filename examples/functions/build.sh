# Compile the examples: sh build.sh (ziglang, assemblyscript and rustc with its wasm32 target).
# The .wasm files that are stored were made by ziglang 0.17, assemblyscript 0.28 and rustc 1.63.
set -e
cd "$(dirname "$0")"
cp ../../tarsdb/udf_sandbox/authoring/tars_udf.* .
trap 'rm -f tars_udf.* *.o' EXIT
for name in text_distance weighted_metric code_words; do
  ${CC:-python -m ziglang cc -target wasm32-freestanding} -mcpu=generic+simd128+bulk_memory -O2 \
    -nostdlib -Wl,--no-entry -Wl,--export=tars_abi_v1 -Wl,-z,stack-size=65536 -g0 -o $name.wasm $name.c
done
for name in geometric_mean json_field; do
  python -m ziglang build-exe $name.zig -target wasm32-freestanding -O ReleaseSmall -fno-entry \
    -rdynamic --stack 65536 -femit-bin=$name.wasm
done
npx --yes --package assemblyscript asc geo_filter.ts -o geo_filter.wasm --runtime stub --noAssert -O3
rustc --target wasm32-unknown-unknown --crate-type cdylib --edition 2021 -O -C panic=abort \
  -C strip=symbols -C link-arg=-zstack-size=65536 -o reranker.wasm reranker.rs
