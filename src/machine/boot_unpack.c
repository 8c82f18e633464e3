#include "machine/boot_unpack.h"

#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "machine/boot_place.h"

/* What an unpacker writes to. Room grows as data come, so that a small file cannot ask for much memory by lying. */
struct output {
    uint8_t *data;
    size_t size, capacity, limit;
};

enum { GROWTH_FIRST = 4 << 20, LZ4_BLOCK_MAX = 8 << 20, LZ4_LEGACY_MAGIC = 0x184C2102 };

/* At least `more` bytes free after `size`, or false: out of memory, or past the limit. */
static bool reserve(struct output *out, size_t more)
{
    if (more > out->limit - out->size)
        return false;
    if (out->capacity - out->size >= more)
        return true;
    size_t wanted = out->capacity ? out->capacity * 2 : GROWTH_FIRST;
    wanted = (size_t)min_u64(max_u64(wanted, out->size + more), out->limit);
    uint8_t *data = realloc(out->data, wanted);
    if (!data)
        return false;
    out->data = data;
    out->capacity = wanted;
    return true;
}

/* Stream unpackers ask for a little room at a time. */
static bool reserve_some(struct output *out)
{
    return out->capacity > out->size || reserve(out, 1);
}

static bool unpack_gzip(const struct blob *packed, struct output *out)
{
    enum { GZIP_WINDOW = 15 + 16 };
    z_stream stream = { .next_in = (Bytef *)packed->data, .avail_in = (uInt)packed->size };
    if (inflateInit2(&stream, GZIP_WINDOW) != Z_OK)
        return false;
    int status = Z_OK;
    while (status == Z_OK && reserve_some(out)) {
        uInt room = (uInt)min_u64(out->capacity - out->size, UINT32_MAX);
        stream.next_out = out->data + out->size;
        stream.avail_out = room;
        status = inflate(&stream, Z_NO_FLUSH);
        out->size += room - stream.avail_out;
    }
    inflateEnd(&stream);
    return status == Z_STREAM_END;
}

/* The kernel's length follows the stream, so bytes left over are no error. */
static bool unpack_lzma(const struct blob *packed, struct output *out)
{
    enum { MEMORY_LIMIT = 256 << 20 };
    lzma_stream stream = LZMA_STREAM_INIT;
    if (lzma_auto_decoder(&stream, MEMORY_LIMIT, 0) != LZMA_OK)
        return false;
    stream.next_in = packed->data;
    stream.avail_in = packed->size;
    lzma_ret status = LZMA_OK;
    while (status == LZMA_OK && reserve_some(out)) {
        size_t room = out->capacity - out->size;
        stream.next_out = out->data + out->size;
        stream.avail_out = room;
        status = lzma_code(&stream, LZMA_RUN);
        out->size += room - stream.avail_out;
    }
    lzma_end(&stream);
    return status == LZMA_STREAM_END;
}

static bool unpack_zstd(const struct blob *packed, struct output *out)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (!stream)
        return false;
    ZSTD_inBuffer in = { packed->data, packed->size, 0 };
    size_t status = 1;
    bool progress = true;
    while (status && progress && reserve_some(out)) {
        ZSTD_outBuffer room = { out->data + out->size, out->capacity - out->size, 0 };
        size_t in_before = in.pos;
        status = ZSTD_decompressStream(stream, &room, &in);
        if (ZSTD_isError(status))
            break;
        out->size += room.pos;
        progress = room.pos || in.pos != in_before;
    }
    ZSTD_freeDStream(stream);
    return status == 0;
}

/* Legacy LZ4: the magic, then blocks of a length and that many packed bytes, each at most 8 MiB unpacked; then the size. */
static bool unpack_lz4(const struct blob *packed, struct output *out)
{
    size_t at = 4;
    while (blob_has(packed, at, 4)) {
        uint32_t length = get32(packed->data + at);
        at += 4;
        if (!length || !blob_has(packed, at, length))
            return out->size && at == packed->size;     /* that was the kernel's length, at the end */
        if (!reserve(out, min_u64(LZ4_BLOCK_MAX, out->limit - out->size)))
            return false;
        int room = (int)min_u64(out->capacity - out->size, LZ4_BLOCK_MAX);
        int got = LZ4_decompress_safe((const char *)packed->data + at, (char *)out->data + out->size, (int)length, room);
        if (got < 0)
            return false;
        out->size += (size_t)got;
        at += length;
    }
    return out->size;
}

static const struct format {
    const char *name;
    uint8_t magic[6];
    uint8_t magic_size;
    bool (*unpack)(const struct blob *packed, struct output *out);
} formats[] = {
    { "gzip", { 0x1F, 0x8B }, 2, unpack_gzip },
    { "XZ", { 0xFD, '7', 'z', 'X', 'Z', 0 }, 6, unpack_lzma },
    { "LZMA", { 0x5D, 0, 0 }, 3, unpack_lzma },
    { "LZ4", { 0x02, 0x21, 0x4C, 0x18 }, 4, unpack_lz4 },
    { "zstd", { 0x28, 0xB5, 0x2F, 0xFD }, 4, unpack_zstd },
};

bool boot_unpack(const struct blob *packed, size_t limit, struct blob *unpacked, struct error *err)
{
    const struct format *format = NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(formats) && !format; i++)
        if (packed->size >= formats[i].magic_size && !memcmp(packed->data, formats[i].magic, formats[i].magic_size))
            format = &formats[i];
    if (!format || packed->size > INT32_MAX)
        return error_set(err, "%s is packed in a way that Doppel cannot unpack (gzip, XZ, LZMA, LZ4 and zstd are known)",
                         packed->name);
    struct output out = { .limit = limit };
    if (!format->unpack(packed, &out) || !out.size) {
        free(out.data);
        return error_set(err, "%s is damaged, or too large for this machine's memory: its %s data do not unpack", packed->name,
                         format->name);
    }
    *unpacked = (struct blob){ out.data, out.size, packed->name };
    return true;
}
