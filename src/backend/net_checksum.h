/* The Internet checksum (RFC 1071), in network byte order throughout. */
#ifndef DOPPEL_BACKEND_NET_CHECKSUM_H
#define DOPPEL_BACKEND_NET_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Adds bytes to a running sum. All but the last piece of a sum have an even size. */
static inline uint64_t net_sum(uint64_t sum, const uint8_t *data, size_t size)
{
    for (; size >= sizeof(uint32_t); data += sizeof(uint32_t), size -= sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, data, sizeof(word));
        sum += word;
    }
    uint32_t rest = 0;
    memcpy(&rest, data, size);
    return sum + rest;
}

static inline uint16_t net_sum_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

#endif
