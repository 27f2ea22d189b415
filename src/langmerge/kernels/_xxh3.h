/* XXH3 (128 bits, default secret, no seed) of more than 240 bytes, as Yann Collet's specification has it, in stretches: a
 * chunk is hashed block by block just before it is merged, and its bytes are then in the nearest cache. Included like _chunk.h.
 */
#define hash_stripes NAME(hash_stripes)
#define hash_blocks NAME(hash_blocks)
#define hash_end NAME(hash_end)
#define hash_stretch NAME(hash_stretch)
#define Words NAME(Words)
typedef uint64_t Words __attribute__((vector_size(4 * WIDE)));

/* Up to 16 stripes of 64 bytes. */
INLINE void hash_stripes(uint64_t *restrict state, const char *data, const uint8_t *secret, int stripes)
{
    enum { ROWS = 16 / WIDE };
    Words products[ROWS] = {{0}}, values[ROWS] = {{0}};
    for (int n = 0; n < stripes; n++)
        for (int r = 0; r < ROWS; r++) {
            Words value, key;
            memcpy(&value, data + 64 * n + r * (int)sizeof value, sizeof value);
            memcpy(&key, secret + 8 * n + r * (int)sizeof key, sizeof key);
            key ^= value;
            products[r] += (key & 0xFFFFFFFFu) * (key >> 32);
            values[r] += value;
        }
    /* Each value is added to its neighbour's sum: once for all stripes. */
    uint64_t product[8], value[8];
    memcpy(product, products, sizeof product);
    memcpy(value, values, sizeof value);
    for (int k = 0; k < 8; k++) state[k] += product[k] + value[k ^ 1];
}

INLINE void hash_blocks(uint64_t *restrict state, const char *data, Py_ssize_t blocks)
{
    uint64_t secret[8];
    memcpy(secret, hash_secret + HASH_SECRET - 64, sizeof secret);
    for (Py_ssize_t b = 0; b < blocks; b++, data += HASH_BLOCK) {
        hash_stripes(state, data, hash_secret, HASH_BLOCK / 64);
        for (int k = 0; k < 8; k++) state[k] = (state[k] ^ (state[k] >> 47) ^ secret[k]) * 0x9E3779B1u;
    }
}

/* What is left behind `done` of `length` bytes; and the digest, high half first. */
INLINE void hash_end(uint64_t *restrict state, const char *data, Py_ssize_t done, Py_ssize_t length, uint8_t *out)
{
    hash_stripes(state, data + done, hash_secret, (int)((length - 1 - done) / 64));
    hash_stripes(state, data + length - 64, hash_secret + HASH_SECRET - 64 - 7, 1);
    const uint64_t low = hash_folded(state, hash_secret + 11, (uint64_t)length * 0x9E3779B185EBCA87u);
    const uint64_t high =
        hash_folded(state, hash_secret + HASH_SECRET - 64 - 11, ~((uint64_t)length * 0xC2B2AE3D27D4EB4Fu));
    for (int k = 0; k < 8; k++) {
        out[k] = (uint8_t)(high >> (56 - 8 * k));
        out[8 + k] = (uint8_t)(low >> (56 - 8 * k));
    }
}

/* Bytes [first, last) of `length`; stretches begin at multiples of HASH_BLOCK, and the last one gives the digest. */
INLINE void hash_stretch(uint64_t *restrict state, const char *data, Py_ssize_t first, Py_ssize_t last,
                         Py_ssize_t length, uint8_t *out)
{
    /* The last byte stays for the end, which is never empty. */
    const Py_ssize_t blocks = ((last < length ? last : length - 1) - first) / HASH_BLOCK;
    hash_blocks(state, data + first, blocks);
    if (last == length) hash_end(state, data, first + blocks * HASH_BLOCK, length, out);
}
