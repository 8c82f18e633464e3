/* Compressed clusters (QCOW2 §"Compressed Clusters Descriptor"): raw deflate or a zstd frame, unpacked to exactly one cluster. */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

enum { DEFLATE_WINDOW = -12, ZSTD_WINDOW_LOG_MAX = 24 };

static bool unpack_deflate(const uint8_t *packed, size_t packed_size, uint8_t *out, size_t size)
{
    z_stream stream = { .next_in = (uint8_t *)packed, .avail_in = (uInt)packed_size, .next_out = out, .avail_out = (uInt)size };
    if (inflateInit2(&stream, DEFLATE_WINDOW) != Z_OK)
        return false;
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && !stream.avail_out;
}

static bool unpack_zstd(const uint8_t *packed, size_t packed_size, uint8_t *out, size_t size)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    ZSTD_inBuffer in = { packed, packed_size, 0 };
    ZSTD_outBuffer buffer = { out, size, 0 };
    size_t result = context ? ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX) : 1;
    while (context && !ZSTD_isError(result) && buffer.pos < size && in.pos < in.size)
        result = ZSTD_decompressStream(context, &buffer, &in);
    ZSTD_freeDCtx(context);
    return context && !ZSTD_isError(result) && buffer.pos == size;
}

int qcow2_unpack(struct qcow2 *q, uint64_t entry, uint8_t *cluster)
{
    uint64_t offset, size;
    qcow2_packed_place(q, entry, &offset, &size);
    uint8_t *packed = malloc(size);
    if (!packed)
        return ENOMEM;
    int status = disk_file_read(q->image.file, packed, size, offset);
    bool zstd = q->compression == QCOW2_COMPRESSION_ZSTD;
    if (!status && !(zstd ? unpack_zstd : unpack_deflate)(packed, size, cluster, q->cluster_size))
        status = EIO;
    free(packed);
    return status;
}
