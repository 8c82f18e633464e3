/* Opening a snapshot: its state, and that of its parents up to the full one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "machine/snapshot_internal.h"

static const struct state_field clock_fields[] = {
    STATE_SCALAR(struct snapshot_clock, tsc), STATE_SCALAR(struct snapshot_clock, tsc_hz),
    STATE_SCALAR(struct snapshot_clock, wall_ns),
};
const struct state_list snapshot_clock_list = STATE_LIST("clock", 1, clock_fields);

static const struct state_field requests_fields[] = { STATE_SCALAR(struct snapshot_requests, pending) };
const struct state_list snapshot_requests_list = STATE_LIST("requests", 1, requests_fields);

static bool read_id(const json_t *json, const char *path, char id[SNAPSHOT_ID_SIZE], struct error *err)
{
    const char *text = json_string_value(json);
    if (!text || strlen(text) != SNAPSHOT_ID_SIZE - 1)
        return error_set(err, "the snapshot %s is damaged: it has no id", path);
    memcpy(id, text, SNAPSHOT_ID_SIZE);
    return true;
}

static bool read_manifest(struct snapshot_layer *layer, struct error *err)
{
    const struct state_buffer *text = container_find(&layer->state, SECTION_MANIFEST);
    json_error_t why = { .text = "it is missing" };
    if (text)
        layer->manifest = json_loadb((const char *)text->data, text->size, 0, &why);
    if (!layer->manifest)
        return error_set(err, "the snapshot %s is damaged: section %s: %s", layer->path, SECTION_MANIFEST, why.text);
    const json_t *parent = json_object_get(layer->manifest, "parent");
    layer->parent = json_string_value(json_object_get(parent, "directory"));
    layer->parent_id = json_string_value(json_object_get(parent, "id"));
    return read_id(json_object_get(layer->manifest, "id"), layer->path, layer->id, err);
}

bool snapshot_layer_open(struct snapshot_layer *layer, const char *path, struct error *err)
{
    struct error why;
    *layer = (struct snapshot_layer){ .directory = -1 };
    layer->path = strdup(path);
    if (!layer->path)
        return error_set(err, "no memory to open a snapshot");
    layer->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (layer->directory < 0)
        return error_errno(err, errno, "cannot open the snapshot %s", path);
    if (!container_read(&layer->state, layer->directory, SNAPSHOT_STATE_FILE, &why))
        return error_set(err, "the snapshot %s cannot be used: %s", path, why.text);
    return read_manifest(layer, err) && snapshot_open_memory(layer, err);
}

void snapshot_layer_close(struct snapshot_layer *layer)
{
    snapshot_close_memory(layer);
    container_free(&layer->state);
    json_decref(layer->manifest);
    if (layer->directory >= 0)
        close(layer->directory);
    free(layer->path);
}

/* A parent's path is relative to its child, so that a chain can be moved as a whole. */
static char *parent_path(const struct snapshot_layer *child)
{
    char *path;
    if (child->parent[0] == '/')
        return strdup(child->parent);
    return asprintf(&path, "%s/%s", child->path, child->parent) < 0 ? NULL : path;
}

static bool is_differential(const struct snapshot_layer *layer)
{
    for (unsigned i = 0; i < layer->slot_count; i++)
        if (layer->slot[i].differential)
            return true;
    return false;
}

static bool open_parent(struct snapshot *snapshot, const struct snapshot_layer *child, struct error *err)
{
    if (snapshot->layers == SNAPSHOT_CHAIN_MAX)
        return error_set(err, "the chain of snapshots is longer than %d", SNAPSHOT_CHAIN_MAX);
    if (!child->parent || !child->parent_id)
        return error_set(err, "the snapshot %s is damaged: it does not say what its parent is", child->path);
    char *path = parent_path(child);
    struct snapshot_layer *parent = &snapshot->layer[snapshot->layers++];
    bool ok = path ? snapshot_layer_open(parent, path, err) : error_set(err, "no memory to open a snapshot");
    if (ok && strcmp(parent->id, child->parent_id))
        ok = error_set(err, "%s is not the snapshot that %s is based on: another has taken its place", path, child->path);
    free(path);
    return ok;
}

static bool open_chain(struct snapshot *snapshot, const char *directory, struct error *err)
{
    snapshot->layers = 1;
    if (!snapshot_layer_open(&snapshot->layer[0], directory, err))
        return false;
    while (is_differential(&snapshot->layer[snapshot->layers - 1]))
        if (!open_parent(snapshot, &snapshot->layer[snapshot->layers - 1], err))
            return false;
    return true;
}

struct snapshot *snapshot_open(const char *directory, struct error *err)
{
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
    if (!snapshot) {
        error_set(err, "no memory to open a snapshot");
        return NULL;
    }
    if (open_chain(snapshot, directory, err) &&
        snapshot_config_load(&snapshot->config, json_object_get(snapshot->layer[0].manifest, "config"), err))
        return snapshot;
    snapshot_close(snapshot);
    return NULL;
}

void snapshot_close(struct snapshot *snapshot)
{
    if (!snapshot)
        return;
    for (unsigned i = 0; i < snapshot->layers; i++)
        snapshot_layer_close(&snapshot->layer[i]);
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++)
        free(snapshot->disk_path[i]);
    free(snapshot);
}

struct machine_config *snapshot_config(struct snapshot *snapshot) { return &snapshot->config; }
