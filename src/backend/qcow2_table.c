/* Tables in memory: L2 tables and refcount blocks, read as they are needed. */
#include "backend/qcow2.h"

#include <errno.h>
#include <stdlib.h>

void qcow2_table_touch(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from, uint32_t to)
{
    if (!table->dirty_to && cache)
        cache->dirty++;
    if (!table->dirty_to || from < table->dirty_from)
        table->dirty_from = from;
    if (to > table->dirty_to)
        table->dirty_to = to;
}

void qcow2_set_entry(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t index, uint64_t value)
{
    value = htobe64(value);
    memcpy(table->bytes + index * 8, &value, 8);
    qcow2_table_touch(cache, table, (uint32_t)index * 8, (uint32_t)index * 8 + 8);
}

/* The last used that nobody needs: neither changed nor about to be written. */
static void drop_one(struct qcow2_cache *cache)
{
    struct qcow2_table **found = NULL;
    for (struct qcow2_table **link = &cache->first; *link; link = &(*link)->next)
        if (!(*link)->dirty_to && !(*link)->writing)
            found = link;
    if (!found)
        return;
    struct qcow2_table *table = *found;
    *found = table->next;
    cache->count--;
    free(table->bytes);
    free(table);
}

static struct qcow2_table *add(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset)
{
    if (cache->count >= cache->limit)
        drop_one(cache);
    struct qcow2_table *table = calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->bytes = calloc(1, q->cluster_size);
    if (!table->bytes) {
        free(table);
        return NULL;
    }
    table->offset = offset;
    table->size = (uint32_t)q->cluster_size;
    table->next = cache->first;
    cache->first = table;
    cache->count++;
    return table;
}

static void drop_first(struct qcow2_cache *cache)
{
    struct qcow2_table *table = cache->first;
    cache->first = table->next;
    cache->count--;
    free(table->bytes);
    free(table);
}

static struct qcow2_table *find(struct qcow2_cache *cache, uint64_t offset)
{
    for (struct qcow2_table **link = &cache->first; *link; link = &(*link)->next) {
        struct qcow2_table *table = *link;
        if (table->offset != offset)
            continue;
        *link = table->next;
        table->next = cache->first;
        cache->first = table;
        return table;
    }
    return NULL;
}

int qcow2_table_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table)
{
    if (offset & (q->cluster_size - 1) || !offset)
        return EIO;                     /* a broken image */
    *table = find(cache, offset);
    if (*table)
        return 0;
    *table = add(q, cache, offset);
    if (!*table)
        return ENOMEM;
    int status = disk_file_read(q->image.file, (*table)->bytes, q->cluster_size, offset);
    if (status)
        drop_first(cache);
    return status;
}

int qcow2_table_make(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table)
{
    /* What the cluster was before, if a table of this kind, is of no use any more. */
    *table = find(cache, offset);
    if (*table)
        memset((*table)->bytes, 0, (*table)->size);
    else
        *table = add(q, cache, offset);
    if (!*table)
        return ENOMEM;
    (*table)->is_new = true;
    qcow2_table_touch(cache, *table, 0, (*table)->size);
    return 0;
}

void qcow2_cache_free(struct qcow2_cache *cache)
{
    while (cache->first)
        drop_first(cache);
    cache->dirty = 0;
}
