# OpenSSL: every digest and many ciphers over the same text, signatures made and checked.
set -e
cd /tmp
seq 1 "${1:-20000}" >text
for digest in $(openssl list -digest-commands); do
    openssl dgst -"$digest" text 2>/dev/null || echo "$digest is not to be had"
done
for cipher in aes-128-cbc aes-256-ctr aes-192-cfb camellia-256-cbc aria-128-ctr chacha20 sm4-cbc des-ede3-cbc; do
    key=00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210
    openssl enc -"$cipher" -K $key -iv 0f1e2d3c4b5a69788796a5b4c3d2e1f0 -in text -out sealed 2>/dev/null || { echo "$cipher is not to be had"; continue; }
    openssl enc -d -"$cipher" -K $key -iv 0f1e2d3c4b5a69788796a5b4c3d2e1f0 -in sealed 2>/dev/null | cmp - text
    echo "$cipher $(sha256sum <sealed)"
done
for kind in 'RSA -pkeyopt rsa_keygen_bits:1024' 'EC -pkeyopt ec_paramgen_curve:P-256' ED25519 ED448; do
    openssl genpkey -algorithm $kind -out key 2>/dev/null
    openssl pkeyutl -sign -inkey key -rawin -in text -out signature
    openssl pkeyutl -verify -inkey key -rawin -in text -sigfile signature
done
