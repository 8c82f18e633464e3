/* Snapshots that are damaged, incomplete or invented: each is refused with its place named, and never a crash. */
#include "state/tiny.h"

#include <xxhash.h>

#include "machine/snapshot_internal.h"

/* Restores "bad"; it must be refused with a text that holds `words` (NULL: any). */
static void expect_refusal(const struct tiny *tiny, const char *words)
{
    struct tiny copy;
    struct error err = { "" };
    if (tiny_restore(tiny, &copy, "bad", NULL, false, &err))
        fail_msg("restored, although %s", words ? words : "it is damaged");
    if (words && !strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
    assert_true(*err.text);
}

static void shell(const struct tiny *tiny, const char *format, const char *argument)
{
    char command[512], whole[640];
    snprintf(command, sizeof(command), format, argument);
    snprintf(whole, sizeof(whole), "cd %s && %s", tiny->folder, command);
    assert_int_equal(system(whole), 0);
}

static void copy_good(const struct tiny *tiny) { shell(tiny, "rm -rf bad && cp -r %s bad", "good"); }

static void setup(struct tiny *tiny)
{
    tiny_new(tiny, NULL, 1);
    tiny_await_work(tiny);
    tiny_save(tiny, "good", NULL);
    tiny_await_work(tiny);
    tiny_save(tiny, "child", "good");
    tiny_stop(tiny);
}

/* --- the state file, as it lies there --- */

static uint8_t *read_file(const struct tiny *tiny, const char *name, size_t *size)
{
    FILE *file = fopen(tiny_path(tiny, name), "r");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

static void write_file(const struct tiny *tiny, const char *name, const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(tiny_path(tiny, name), "w");
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

/* The table's rows begin at 32 and have 64 bytes: name (40), offset, size, checksum. */
static void each_section_flipped_or_cut_is_refused_by_name(void **state)
{
    struct tiny tiny;
    size_t size;
    setup(&tiny);
    copy_good(&tiny);
    uint8_t *bytes = read_file(&tiny, "good/state", &size);
    uint32_t count;
    memcpy(&count, bytes + 12, sizeof(count));
    assert_true(count > 10);
    for (uint32_t i = 0; i < count; i++) {
        char name[41] = "", words[64];
        uint64_t place[2];
        memcpy(name, bytes + 32 + i * 64, 40);
        memcpy(place, bytes + 32 + i * 64 + 40, sizeof(place));
        snprintf(words, sizeof(words), "section %s", name);
        for (unsigned bit = 0; bit < 8; bit++) {
            size_t at = place[0] + (place[1] - 1) * bit / 7;
            bytes[at] ^= (uint8_t)(1 << bit);
            write_file(&tiny, "bad/state", bytes, size);
            expect_refusal(&tiny, words);
            bytes[at] ^= (uint8_t)(1 << bit);
        }
        write_file(&tiny, "bad/state", bytes, place[0] + place[1] / 2);
        expect_refusal(&tiny, "damaged");
    }
    free(bytes);
    tiny_end(&tiny);
}

/* --- sections whose checksums are right, but which say something else --- */

static void load(const struct tiny *tiny, struct container *container)
{
    struct error err;
    int directory = open(tiny_path(tiny, "good"), O_RDONLY | O_DIRECTORY);
    *container = (struct container){ 0 };
    if (!container_read(container, directory, "state", &err))
        fail_msg("%s", err.text);
    close(directory);
}

static void store(const struct tiny *tiny, struct container *container)
{
    struct error err;
    int directory = open(tiny_path(tiny, "bad"), O_RDONLY | O_DIRECTORY);
    assert_true(container_write(container, directory, "state", &err));
    close(directory);
    container_free(container);
}

static struct container_section *section(struct container *container, const char *name)
{
    for (unsigned i = 0; i < container->count; i++)
        if (!strcmp(container->section[i].name, name))
            return &container->section[i];
    fail_msg("there is no section %s", name);
    return NULL;
}

static void a_section_that_is_missing_is_named(void **state)
{
    struct tiny tiny;
    struct container container;
    setup(&tiny);
    copy_good(&tiny);
    load(&tiny, &container);
    unsigned count = container.count;
    container_free(&container);
    for (unsigned i = 0; i < count; i++) {
        load(&tiny, &container);
        char name[CONTAINER_NAME_MAX];
        strcpy(name, container.section[i].name);
        snprintf(container.section[i].name, CONTAINER_NAME_MAX, "%s-gone", name);
        store(&tiny, &container);
        expect_refusal(&tiny, !strncmp(name, "ram/", 4) ? "memory" : !strncmp(name, "device/", 7) ? name + 7 : name);
    }
    tiny_end(&tiny);
}

static void a_section_of_another_kind_or_length_is_refused(void **state)
{
    struct tiny tiny;
    struct container container;
    setup(&tiny);
    copy_good(&tiny);
    load(&tiny, &container);
    strcpy(section(&container, "device/pit")->name, "x");
    strcpy(section(&container, "device/rtc")->name, "device/pit");
    strcpy(section(&container, "x")->name, "device/rtc");
    store(&tiny, &container);
    expect_refusal(&tiny, "section device/");
    load(&tiny, &container);
    memset(state_buffer_append(&section(&container, "vcpu/0")->content, 10), 0, 10);
    store(&tiny, &container);
    expect_refusal(&tiny, "section vcpu/0");
    load(&tiny, &container);
    section(&container, "vcpu/0")->content.size -= 5;
    store(&tiny, &container);
    expect_refusal(&tiny, "section vcpu/0");
    load(&tiny, &container);
    container_add(&container, "device/warp-drive");
    store(&tiny, &container);
    expect_refusal(&tiny, "warp-drive");
    tiny_end(&tiny);
}

static void replace_manifest(const struct tiny *tiny, const char *from, const char *to)
{
    struct container container;
    load(tiny, &container);
    struct state_buffer *content = &section(&container, "manifest")->content;
    char *text = strndup((const char *)content->data, content->size), *at = strstr(text, from);
    assert_non_null(at);
    content->size = 0;
    memcpy(state_buffer_append(content, (size_t)(at - text)), text, (size_t)(at - text));
    memcpy(state_buffer_append(content, strlen(to)), to, strlen(to));
    at += strlen(from);
    memcpy(state_buffer_append(content, strlen(at)), at, strlen(at));
    free(text);
    store(tiny, &container);
}

static void a_manifest_that_makes_no_sense_is_refused(void **state)
{
    static const struct { const char *from, *to, *words; } rows[] = {
        { "\"memory\": 2097152", "\"memory\": -1", "memory" },
        { "\"memory\": 2097152", "\"memory\": \"much\"", "memory" },
        { "\"memory\": 2097152", "\"memory\": 4194304", "memory" },
        { "\"memory\": 2097152", "\"memory\": 2097153", "4K" },
        { "\"cpus\": 1", "\"cpus\": 100000", "processors" },
        { "\"cpus\": 1", "\"cpus\": 2", "vcpu/1" },
        { "\"disks\": []", "\"disks\": 3", "disks" },
        { "\"disks\": []", "\"disks\": [{}]", "disk 0" },
        { "\"disks\": []", "\"disks\": [{\"path\": \"/nonexistent\", \"read_only\": true}]", "/nonexistent" },
        { "\"nets\": []", "\"nets\": [{\"backend\": 5}]", "backend" },
        { "\"extras\": []", "\"extras\": [\"warp-drive\"]", "warp-drive" },
        { "\"rng\": true", "\"rng\": false", "virtio-rng0" },
        { "\"config\"", "\"no-config\"", "configuration" },
        { "\"id\"", "\"no-id\"", "id" },
        { "{", "[", "manifest" },
    };
    struct tiny tiny;
    setup(&tiny);
    copy_good(&tiny);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        replace_manifest(&tiny, rows[i].from, rows[i].to);
        expect_refusal(&tiny, rows[i].words);
    }
    tiny_end(&tiny);
}

/* --- memory --- */

static void damaged_memory_is_refused(void **state)
{
    struct tiny tiny;
    struct error err;
    setup(&tiny);
    copy_good(&tiny);
    shell(&tiny, "truncate -s -4096 %s", "bad/ram-0");
    expect_refusal(&tiny, "ram-0");
    copy_good(&tiny);
    shell(&tiny, "rm %s", "bad/ram-0");
    expect_refusal(&tiny, "ram-0");
    copy_good(&tiny);
    shell(&tiny, "rm bad/ram-0 && mkdir %s", "bad/ram-0");
    expect_refusal(&tiny, "ram-0");
    assert_true(snapshot_check(tiny_path(&tiny, "good"), &err));
    assert_true(snapshot_check(tiny_path(&tiny, "child"), &err));
    /* The counter's page: conventional memory is its own slot. */
    copy_good(&tiny);
    shell(&tiny, "for f in bad/ram-*; do printf x | dd of=$f bs=1 seek=1282 conv=notrunc 2>/dev/null; done; test -d %s", "bad");
    if (snapshot_check(tiny_path(&tiny, "bad"), &err))
        fail_msg("a flipped byte of memory is not found");
    assert_non_null(strstr(err.text, "checksum"));
    tiny_end(&tiny);
}

static void runs_that_make_no_sense_are_refused(void **state)
{
    struct tiny tiny;
    struct container container;
    setup(&tiny);
    copy_good(&tiny);
    load(&tiny, &container);
    unsigned slots = 0;
    for (unsigned i = 0; i < container.count; i++)
        slots += !strncmp(container.section[i].name, "ram/", 4);
    container_free(&container);
    for (unsigned slot = 0; slot < slots; slot++)
        for (unsigned word = 0; word < 5; word++) {
            char name[32];
            snprintf(name, sizeof(name), "ram/%u", slot);
            load(&tiny, &container);
            struct state_buffer *content = &section(&container, name)->content;
            uint8_t *at = memmem(content->data, content->size, "extent\x01", 7);
            assert_non_null(at);
            if (content->size < (size_t)(at - content->data) + 20 + 40 || word == 4) {     /* empty; a checksum says nothing here */
                container_free(&container);
                continue;
            }
            const uint64_t bad = 0x0FFFFFFFFFFFFFFF;
            memcpy(at + 19 + word * 8, &bad, sizeof(bad));
            store(&tiny, &container);
            expect_refusal(&tiny, "makes no sense");
        }
    tiny_end(&tiny);
}

/* --- chains --- */

static void a_chain_with_a_gap_is_refused(void **state)
{
    struct tiny tiny;
    struct error err;
    setup(&tiny);
    shell(&tiny, "mv %s bad", "child");
    struct tiny copy;
    if (!tiny_restore(&tiny, &copy, "bad", NULL, false, &err))      /* the parent is found beside it */
        fail_msg("%s", err.text);
    tiny_save(&copy, "other", NULL);
    tiny_stop(&copy);
    shell(&tiny, "mv good kept && mv %s good", "other");
    expect_refusal(&tiny, "another has taken its place");
    shell(&tiny, "rm -r %s", "good");
    expect_refusal(&tiny, "cannot open the snapshot");
    /* A chain that leads to itself. */
    shell(&tiny, "cp -r bad %s", "good");
    expect_refusal(&tiny, NULL);
    tiny_end(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_section_flipped_or_cut_is_refused_by_name),
        cmocka_unit_test(a_section_that_is_missing_is_named),
        cmocka_unit_test(a_section_of_another_kind_or_length_is_refused),
        cmocka_unit_test(a_manifest_that_makes_no_sense_is_refused),
        cmocka_unit_test(damaged_memory_is_refused),
        cmocka_unit_test(runs_that_make_no_sense_are_refused),
        cmocka_unit_test(a_chain_with_a_gap_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
