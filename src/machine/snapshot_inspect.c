#include "machine/snapshot_inspect.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "machine/snapshot_internal.h"
#include "state/stream.h"

enum { SHOWN_ELEMENTS = 16, SHOWN_BYTES = 32, SHOWN_RUNS = 20 };

/* --- fields --- */

static void print_bytes(const uint8_t *data, uint32_t size, FILE *out)
{
    for (uint32_t i = 0; i < size && i < SHOWN_BYTES; i++)
        fprintf(out, "%02x", data[i]);
    if (size > SHOWN_BYTES)
        fprintf(out, "... (%u bytes)", size);
}

static void print_value(const struct stream_field *field, FILE *out)
{
    for (uint32_t i = 0; i < field->count && i < SHOWN_ELEMENTS; i++) {
        const uint8_t *element = field->data + (size_t)i * field->size;
        uint64_t value = 0;
        fputs(i ? " " : "", out);
        if (field->kind == STATE_BYTES || field->size > sizeof(value)) {
            print_bytes(element, field->size, out);
            continue;
        }
        memcpy(&value, element, field->size);
        fprintf(out, "%#llx", (unsigned long long)value);
    }
    if (field->count > SHOWN_ELEMENTS)
        fprintf(out, " ... (%u)", field->count);
}

struct printer {
    const char *section;
    FILE *out;
};

static void print_field(void *owner, const struct stream_field *field)
{
    const struct printer *printer = owner;
    fprintf(printer->out, "%s %s ", printer->section, field->path);
    print_value(field, printer->out);
    fputc('\n', printer->out);
}

static bool print_section(const struct container_section *section, FILE *out, struct error *err)
{
    struct printer printer = { section->name, out };
    if (!strcmp(section->name, SECTION_MANIFEST)) {
        fprintf(out, "%.*s\n", (int)section->content.size, (const char *)section->content.data);
        return true;
    }
    return stream_visit(section->content.data, section->content.size, print_field, &printer, err);
}

/* --- show, list, check --- */

static uint64_t pages_of(const struct snapshot_slot *slot)
{
    uint64_t pages = 0;
    for (uint64_t i = 0; i < slot->extent_count; i++)
        pages += slot->extent[i].pages;
    return pages;
}

static void print_layer(const struct snapshot_layer *layer, FILE *out)
{
    uint64_t pages = 0;
    for (unsigned i = 0; i < layer->slot_count; i++)
        pages += pages_of(&layer->slot[i]);
    fprintf(out, "%s  %s  %s  %.1f MiB of memory%s%s\n", layer->id,
            json_string_value(json_object_get(layer->manifest, "created")) ?: "?", layer->slot[0].differential ? "differential" : "full",
            (double)(pages << PAGE_SHIFT) / MiB, layer->slot[0].compressed ? ", compressed  " : "  ", layer->path);
}

static void print_parts(const struct snapshot_layer *layer, FILE *out)
{
    print_layer(layer, out);
    print_section(&layer->state.section[0], out, NULL);
    for (unsigned i = 0; i < layer->slot_count; i++)
        fprintf(out, "memory %-12s %#12llx to %#12llx, %llu pages in %llu runs\n", layer->slot[i].name,
                (unsigned long long)layer->slot[i].gpa, (unsigned long long)(layer->slot[i].gpa + layer->slot[i].size - 1),
                (unsigned long long)pages_of(&layer->slot[i]), (unsigned long long)layer->slot[i].extent_count);
    for (unsigned i = 0; i < layer->state.count; i++)
        fprintf(out, "section %-24s %8zu bytes\n", layer->state.section[i].name, layer->state.section[i].content.size);
}

bool snapshot_show(const char *directory, const char *sections, FILE *out, struct error *err)
{
    struct snapshot_layer layer;
    bool ok = snapshot_layer_open(&layer, directory, err);
    if (ok && !sections)
        print_parts(&layer, out);
    unsigned shown = 0;
    for (unsigned i = 0; ok && sections && i < layer.state.count; i++)
        if (!fnmatch(sections, layer.state.section[i].name, 0)) {
            ok = print_section(&layer.state.section[i], out, err);
            shown++;
        }
    if (ok && sections && !shown)
        ok = error_set(err, "no section of the snapshot matches '%s'", sections);
    snapshot_layer_close(&layer);
    return ok;
}

bool snapshot_list(const char *directory, FILE *out, struct error *err)
{
    struct snapshot *snapshot = snapshot_open(directory, err);
    for (unsigned i = 0; snapshot && i < snapshot->layers; i++)
        print_layer(&snapshot->layer[i], out);
    bool ok = snapshot;
    snapshot_close(snapshot);
    return ok;
}

/* Does the guest write to it? Then the snapshot has an image of its own, or one that stays in place. */
static bool has_image(const struct disk_config *disk) { return !disk->absent && !disk->image.read_only; }

static bool check_disks(const struct snapshot *snapshot, struct error *err)
{
    bool ok = true, in_place;
    char path[PATH_MAX];
    for (unsigned i = 0; ok && i < snapshot->config.disk_count; i++)
        ok = !has_image(&snapshot->config.disk[i]) || snapshot_disk_find(snapshot, i, path, &in_place, err);
    return ok;
}

bool snapshot_check(const char *directory, struct error *err)
{
    struct snapshot *snapshot = snapshot_open(directory, err);
    bool ok = snapshot && check_disks(snapshot, err);
    for (unsigned i = 0; ok && i < snapshot->layers; i++)
        ok = snapshot_verify_memory(&snapshot->layer[i], err);
    snapshot_close(snapshot);
    return ok;
}

/* --- diff: the fields of both are collected, then compared by their paths --- */

struct fields {
    struct {
        char *path;
        struct stream_field field;
    } *row;
    size_t count, room;
};

static void collect(void *owner, const struct stream_field *field)
{
    struct fields *fields = owner;
    if (fields->count == fields->room) {
        fields->room = fields->room ? fields->room * 2 : 64;
        void *grown = realloc(fields->row, fields->room * sizeof(*fields->row));
        if (!grown)
            abort();        /* a few thousand fields at most: CONTAINER_SIZE_MAX */
        fields->row = grown;
    }
    fields->row[fields->count].path = strdup(field->path);
    fields->row[fields->count++].field = *field;
}

static void free_fields(struct fields *fields)
{
    for (size_t i = 0; i < fields->count; i++)
        free(fields->row[i].path);
    free(fields->row);
}

static const struct stream_field *find(const struct fields *fields, const char *path, size_t guess)
{
    if (guess < fields->count && !strcmp(fields->row[guess].path, path))
        return &fields->row[guess].field;
    for (size_t i = 0; i < fields->count; i++)
        if (!strcmp(fields->row[i].path, path))
            return &fields->row[i].field;
    return NULL;
}

static bool same(const struct stream_field *a, const struct stream_field *b)
{
    return a->kind == b->kind && a->size == b->size && a->count == b->count && !memcmp(a->data, b->data, (size_t)a->size * a->count);
}

struct diff {
    uint64_t count;
    FILE *out;
};

static void print_difference(struct diff *diff, const char *section, const char *path, const struct stream_field *a,
                             const struct stream_field *b)
{
    diff->count++;
    fprintf(diff->out, "%s %s ", section, path);
    if (a)
        print_value(a, diff->out);
    fputs(!a ? "(only in the second) " : b ? " | " : " (only in the first)", diff->out);
    if (b)
        print_value(b, diff->out);
    fputc('\n', diff->out);
}

static bool diff_section(struct diff *diff, const char *name, const struct state_buffer *a, const struct state_buffer *b,
                         struct error *err)
{
    struct fields first = { 0 }, second = { 0 };
    bool ok = stream_visit(a->data, a->size, collect, &first, err) && stream_visit(b->data, b->size, collect, &second, err);
    for (size_t i = 0; ok && i < first.count; i++) {
        const struct stream_field *other = find(&second, first.row[i].path, i);
        if (!other || !same(&first.row[i].field, other))
            print_difference(diff, name, first.row[i].path, &first.row[i].field, other);
    }
    for (size_t i = 0; ok && i < second.count; i++)
        if (!find(&first, second.row[i].path, i))
            print_difference(diff, name, second.row[i].path, NULL, &second.row[i].field);
    free_fields(&first);
    free_fields(&second);
    return ok;
}

static bool is_memory(const char *section) { return !strncmp(section, "ram/", 4); }

static bool diff_sections(struct diff *diff, const struct container *a, const struct container *b, struct error *err)
{
    for (unsigned i = 0; i < a->count; i++) {
        const char *name = a->section[i].name;
        const struct state_buffer *other = container_find(b, name);
        if (is_memory(name) || !strcmp(name, SECTION_MANIFEST))
            continue;
        if (!other)
            fprintf(diff->out, "%s is only in the first\n", name), diff->count++;
        else if (!diff_section(diff, name, &a->section[i].content, other, err))
            return false;
    }
    for (unsigned i = 0; i < b->count; i++)
        if (!container_find(a, b->section[i].name))
            fprintf(diff->out, "%s is only in the second\n", b->section[i].name), diff->count++;
    return true;
}

static void diff_config(struct diff *diff, json_t *a, json_t *b)
{
    const char *key;
    json_t *value;
    json_object_foreach(a, key, value) {
        json_t *other = json_object_get(b, key);
        if (json_equal(value, other))
            continue;
        char *first = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT), *second = json_dumps(other, JSON_ENCODE_ANY | JSON_COMPACT);
        fprintf(diff->out, "config %s %s | %s\n", key, first, second ? second : "(none)");
        diff->count++;
        free(first);
        free(second);
    }
}

/* Counts the pages that differ, and prints the first runs of them. */
static void diff_slot(struct diff *diff, const struct ram_slot *a, const struct ram_slot *b)
{
    uint64_t pages = a->size >> PAGE_SHIFT, differing = 0, runs = 0;
    for (uint64_t page = 0; page < pages;) {
        uint64_t first = page;
        while (page < pages && memcmp(a->host + (page << PAGE_SHIFT), b->host + (page << PAGE_SHIFT), PAGE_SIZE))
            page++;
        if (page > first && runs++ < SHOWN_RUNS)
            fprintf(diff->out, "memory %#llx to %#llx differs\n", (unsigned long long)(a->gpa + (first << PAGE_SHIFT)),
                    (unsigned long long)(a->gpa + (page << PAGE_SHIFT) - 1));
        differing += page - first;
        page += page == first;
    }
    diff->count += differing;
    if (differing)
        fprintf(diff->out, "memory %s: %llu of %llu pages differ, in %llu runs\n", a->name, (unsigned long long)differing,
                (unsigned long long)pages, (unsigned long long)runs);
}

static bool diff_memory(struct diff *diff, const struct snapshot *a, const struct snapshot *b, struct error *err)
{
    struct ram *first = snapshot_memory(a, err), *second = first ? snapshot_memory(b, err) : NULL;
    for (unsigned i = 0; second && i < max_u64(first->slot_count, second->slot_count); i++) {
        const struct ram_slot *x = &first->slot[i], *y = &second->slot[i];
        if (i < first->slot_count && i < second->slot_count && x->gpa == y->gpa && x->size == y->size)
            diff_slot(diff, x, y);
        else
            fprintf(diff->out, "memory %u is of another size or in another place\n", i), diff->count++;
    }
    bool ok = second;
    ram_destroy(first);
    ram_destroy(second);
    return ok;
}

bool snapshot_diff(const char *a, const char *b, uint64_t *differences, FILE *out, struct error *err)
{
    struct diff diff = { .out = out };
    struct snapshot *first = snapshot_open(a, err), *second = first ? snapshot_open(b, err) : NULL;
    bool ok = second;
    if (ok) {
        diff_config(&diff, json_object_get(first->layer[0].manifest, "config"), json_object_get(second->layer[0].manifest, "config"));
        ok = diff_sections(&diff, &first->layer[0].state, &second->layer[0].state, err) && diff_memory(&diff, first, second, err);
    }
    *differences = diff.count;
    snapshot_close(first);
    snapshot_close(second);
    return ok;
}

/* --- flatten --- */

/* The state is the newest's, but for memory and for the parent that is no longer needed. */
static bool copy_state(const struct snapshot_layer *layer, struct container *state, struct error *err)
{
    json_t *manifest = json_deep_copy(layer->manifest);
    json_object_set_new(manifest, "parent", json_null());
    char *text = json_dumps(manifest, JSON_INDENT(2));
    json_decref(manifest);
    if (!text)
        return error_set(err, "no memory for the snapshot");
    size_t size = strlen(text);
    memcpy(state_buffer_append(container_add(state, SECTION_MANIFEST), size), text, size);
    free(text);
    for (unsigned i = 0; i < layer->state.count; i++) {
        const struct container_section *section = &layer->state.section[i];
        if (is_memory(section->name) || !strcmp(section->name, SECTION_MANIFEST))
            continue;
        struct state_buffer *copy = container_add(state, section->name);
        memcpy(state_buffer_append(copy, section->content.size), section->content.data, section->content.size);
    }
    return true;
}

/* Those that stay in place are named by the new snapshot, too. */
static bool copy_disks(const struct snapshot *snapshot, int to, struct error *err)
{
    for (unsigned i = 0; i < snapshot->config.disk_count; i++) {
        char name[CONTAINER_NAME_MAX], path[PATH_MAX];
        bool in_place;
        if (!has_image(&snapshot->config.disk[i]))
            continue;
        snprintf(name, sizeof(name), "disk-%u", i);
        if (!snapshot_disk_find(snapshot, i, path, &in_place, err) || (!in_place && !snapshot_copy_file(AT_FDCWD, path, to, name, err)))
            return false;
    }
    return true;
}

static bool write_flat(const struct snapshot *snapshot, int to, struct error *err)
{
    struct container state = { 0 };
    struct ram *ram = snapshot_memory(snapshot, err);
    bool ok = ram && copy_state(&snapshot->layer[0], &state, err) && copy_disks(snapshot, to, err);
    for (unsigned i = 0; ok && i < ram->slot_count; i++)
        ok = snapshot_save_slot(&state, to, &ram->slot[i], i, NULL, snapshot->layer[0].slot[i].compressed, err);
    ok = ok && container_write(&state, to, SNAPSHOT_STATE_FILE, err);
    ram_destroy(ram);
    container_free(&state);
    return ok;
}

bool snapshot_flatten(const char *directory, const char *to, struct error *err)
{
    struct snapshot_draft draft = { .directory = -1 };
    struct snapshot *snapshot = snapshot_open(directory, err);
    bool ok = snapshot && snapshot_draft_begin(&draft, to, err) && write_flat(snapshot, draft.directory, err) &&
              snapshot_draft_complete(&draft, to, err);
    snapshot_draft_end(&draft);
    snapshot_close(snapshot);
    return ok;
}
