/* The net under kept translations finds each address that a search byte by byte finds, wherever it stands. */
#include "cmocka_all.h"

#include <stdlib.h>
#include <string.h>

#include "engine/dbt/kept_net.h"

enum { SIZE_MOST = 200, ROUNDS = 20000 };

static const uint64_t kernel_rip = 0xFFFFFFFF812345F0;

struct scene {
    struct dbt dbt;
    struct translation t;
    struct vcpu vcpu;
    struct work work;
};

static struct scene *create_scene(void)
{
    struct scene *scene = calloc(1, sizeof(*scene));
    scene->dbt.hot.base = (uint8_t *)0x7F10FC000000;        /* its code lies across a border of 4 GiB */
    scene->dbt.shift = 0x20000000;
    scene->dbt.data = (uint8_t *)0x7E0000000000;
    scene->t.rip = kernel_rip;
    scene->work.dbt = &scene->dbt;
    scene->work.t = &scene->t;
    scene->work.vcpu = &scene->vcpu;
    return scene;
}

/* Bytes as code has them: many are 0 or 0xFF. */
static void fill(uint8_t *code, size_t size)
{
    for (size_t i = 0; i < size; i++)
        code[i] = rand() % 3 ? (uint8_t)rand() : rand() % 2 ? 0 : 0xFF;
}

static void an_address_is_found_wherever_it_stands(void **state)
{
    struct scene *scene = create_scene();
    const uint64_t address[] = {
        (uintptr_t)&scene->dbt.mode, (uintptr_t)scene->dbt.hot.base, (uintptr_t)scene->dbt.hot.base + DBT_CODE_SIZE - 1,
        (uintptr_t)scene->dbt.hot.base + 0x20000000, (uintptr_t)scene->dbt.data + 5, (uintptr_t)&scene->vcpu.rip, kernel_rip - 0x10000,
        kernel_rip + 0xFFFF,
    };
    srand(1);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint8_t *code = malloc(SIZE_MOST);      /* so that a sanitizer sees what is read behind its end */
        size_t size = sizeof(uint64_t) + (size_t)rand() % (SIZE_MOST - sizeof(uint64_t)), at = (size_t)rand() % (size - sizeof(uint64_t) + 1);
        code = realloc(code, size);
        fill(code, size);
        memcpy(code + at, &address[round % ARRAY_SIZE(address)], sizeof(uint64_t));
        assert_true(kept_net_catches(&scene->work, code, size));
        free(code);
    }
    free(scene);
}

static void what_is_beside_is_not_found(void **state)
{
    struct scene *scene = create_scene();
    const uint64_t address[] = {
        (uintptr_t)scene->dbt.hot.base + DBT_CODE_SIZE, (uintptr_t)scene->dbt.hot.base - 1, (uintptr_t)scene->dbt.data + DBT_DATA_SIZE,
        kernel_rip - 0x10001, kernel_rip + 0x10000, 0, UINT64_MAX, 1,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(address); i++) {
        uint8_t code[64] = { 0 };
        memcpy(code + 24 + i, &address[i], sizeof(uint64_t));
        assert_false(kept_net_catches(&scene->work, code, sizeof(code)));
        assert_false(kept_net_catches(&scene->work, code, 7));
    }
    free(scene);
}

/* The upper half of a program's addresses may be 0, or change close by. */
static void low_programs(void **state)
{
    static const uint64_t rips[] = { 0x401000, 0xFFFFF123, 0x100000010, 0x555555554321, 0x7FFFF7FF0000 };
    struct scene *scene = create_scene();
    for (unsigned i = 0; i < ARRAY_SIZE(rips); i++) {
        const uint64_t within[] = { rips[i] - 0x10000, rips[i] - 1, rips[i], rips[i] + 0xFFFF }, beside[] = { rips[i] - 0x10001, rips[i] + 0x10000 };
        scene->t.rip = rips[i];
        for (unsigned at = 0; at <= 56; at++) {
            uint8_t code[64];
            memset(code, 0xCC, sizeof(code));
            memcpy(code + at, &within[at % ARRAY_SIZE(within)], sizeof(uint64_t));
            assert_true(kept_net_catches(&scene->work, code, sizeof(code)));
            memcpy(code + at, &beside[at % ARRAY_SIZE(beside)], sizeof(uint64_t));
            assert_false(kept_net_catches(&scene->work, code, sizeof(code)));
        }
    }
    free(scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_address_is_found_wherever_it_stands),
        cmocka_unit_test(what_is_beside_is_not_found),
        cmocka_unit_test(low_programs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
