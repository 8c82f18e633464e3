/*
 * Invented snapshots: the sections of a true one are changed at random, their checksums made right, and what is not refused is
 * run for a moment on each engine by turns. Nothing may crash or hang. Runs under whatever sanitizers the build has.
 */
#include "state/tiny.h"

#include "machine/snapshot_internal.h"
#include "mutate.h"
#include "state/stream.h"

static void read_container(const struct tiny *tiny, const char *name, struct container *container)
{
    struct error err;
    int directory = open(tiny_path(tiny, name), O_RDONLY | O_DIRECTORY);
    *container = (struct container){ 0 };
    if (!container_read(container, directory, "state", &err))
        fail_msg("%s", err.text);
    close(directory);
}

static void write_container(const struct tiny *tiny, const char *name, const struct container *container)
{
    struct error err;
    int directory = open(tiny_path(tiny, name), O_RDONLY | O_DIRECTORY);
    if (!container_write(container, directory, "state", &err))
        fail_msg("%s", err.text);
    close(directory);
}

/* One of the fields that are visited, each as likely as any other. */
struct choice {
    uint64_t *seed, seen;
    struct stream_field field;
};

static void choose(void *owner, const struct stream_field *field)
{
    struct choice *choice = owner;
    if (!fuzz_below(choice->seed, ++choice->seen))
        choice->field = *field;
}

/* The value of a field, or any byte of a section. */
static void change(struct container *container, uint64_t *seed)
{
    for (uint64_t times = 1 + fuzz_below(seed, 6); times; times--) {
        struct state_buffer *content = &container->section[fuzz_below(seed, container->count)].content;
        struct choice choice = { .seed = seed };
        if (fuzz_below(seed, 16) && stream_visit(content->data, content->size, choose, &choice, NULL) && choice.seen) {
            uint64_t value = fuzz_number(seed), bytes = (uint64_t)choice.field.size * choice.field.count;
            uint8_t *at = (uint8_t *)choice.field.data + fuzz_below(seed, choice.field.count) * choice.field.size;
            memcpy(at, &value, min_u64(min_u64(bytes, sizeof(value)), choice.field.size));
        } else {
            content->size = fuzz_mutate(content->data, content->size, fuzz_below(seed, content->size + 1), seed);
        }
    }
}

int main(int argc, char **argv)
{
    unsigned long rounds = fuzz_rounds(argc, argv, 400), run = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x2545F4914F6CDD1Dull;
    struct tiny tiny, copy;
    struct error err;
    tiny_new(&tiny, NULL, 2);
    tiny_await_work(&tiny);
    tiny_save(&tiny, "good", NULL);
    tiny_stop(&tiny);
    char command[512];
    snprintf(command, sizeof(command), "cp -r %s %s", tiny_path(&tiny, "good"), tiny_path(&tiny, "bad"));
    assert_int_equal(system(command), 0);
    for (unsigned long round = 0; round < rounds; round++) {
        struct container container;
        read_container(&tiny, "good", &container);
        change(&container, &seed);
        write_container(&tiny, "bad", &container);
        container_free(&container);
        if (!tiny_restore(&tiny, &copy, "bad", round & 1 ? "dbt" : "interp", false, &err))
            continue;
        tiny_go(&copy);
        usleep(2000);
        tiny_stop(&copy);
        run++;
    }
    tiny_end(&tiny);
    printf("%lu snapshots, %lu of them restored\n", rounds, run);
    return run ? 0 : 1;
}
