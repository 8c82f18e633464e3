/*
 * Hostile requests to the control socket: mutated HTTP in random pieces, and mutated JSON behind a good head, for every endpoint. No machine
 * is ever booted: the process counts as ending, which vm.boot is told. Nothing may crash, leak or go without a status. Under the sanitizers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/endpoints.h"
#include "base/base.h"
#include "machine/machine.h"
#include "mutate.h"

static const struct { const char *method, *path; } endpoints[] = {
#define ENDPOINT(method, path, id, body, text) { #method, path },
#include "api/endpoints.def"
#undef ENDPOINT
};

static const char *const bodies[] = {
    "{}",
    "{\"cpus\":{\"boot_vcpus\":2,\"max_vcpus\":2},\"memory\":{\"size\":33554432,\"shared\":true,\"hotplug_size\":0},\"payload\":{\"kernel\":\"/k\","
    "\"cmdline\":\"quiet\",\"initramfs\":\"/i\"},\"disks\":[{\"path\":\"/d\",\"readonly\":true,\"image_type\":\"Raw\"},{\"path\":\"/e\"}],\"net\":[{\"mac\":"
    "\"52:54:00:12:34:56\"},{\"tap\":\"tap0\"}],\"rng\":{\"src\":\"/dev/urandom\"},\"console\":{\"mode\":\"Off\"},\"serial\":{\"mode\":\"File\",\"file\":\"/l\"}}",
    "{\"payload\":{\"firmware\":\"bios\"},\"balloon\":{\"size\":0},\"numa\":[],\"platform\":{\"tdx\":false},\"doppel\":{\"engine\":\"dbt\"}}",
    "{\"path\":\"/d\",\"serial\":\"s\",\"direct\":false,\"backing_files\":true}",
    "{\"desired_vcpus\":4,\"desired_ram\":67108864,\"desired_balloon\":0}",
    "{\"payload\":{\"firmware\":\"bios\"},\"disks\":[{\"doppel_bus\":\"cdrom\",\"id\":\"a\"}],\"doppel\":{\"user_data\":\"#cloud-config\",\"ssh_keys\":\"ssh-rsa A\"}}",
    "{\"payload\":{\"firmware\":\"bios\"},\"disks\":[{\"doppel_bus\":\"cdrom\",\"id\":\"a\"},{\"path\":\"/c\",\"doppel_bus\":\"cdrom\"}]}",
    "{\"id\":\"a\",\"path\":\"/d\",\"image_type\":\"Raw\",\"force\":true}",
    "{\"command\":\"info cpus\"}",
    "{\"source_url\":\"file:///no/such/place\",\"resume\":true}",
    "{\"destination_url\":\"file:///no/such/place\"}",
    "{\"directory\":\"/no/such/place/x\",\"parent\":\"/no/such/place/y\",\"compress\":true}",
    "{\"backlog\":9223372036854775807}",
};

static size_t make_request(char *text, size_t room, uint64_t *seed)
{
    unsigned endpoint = (unsigned)fuzz_below(seed, ARRAY_SIZE(endpoints));
    char body[2048];
    snprintf(body, sizeof(body), "%s", bodies[fuzz_below(seed, ARRAY_SIZE(bodies))]);
    size_t size = strlen(body);
    for (uint64_t i = fuzz_below(seed, 4); i; i--)
        size = fuzz_mutate((uint8_t *)body, size, size, seed);
    size_t head = (size_t)(fuzz_below(seed, 4)
        ? snprintf(text, room, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", endpoints[endpoint].method, endpoints[endpoint].path,
                   size)
        : snprintf(text, room, "%s %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%zx\r\n", endpoints[endpoint].method,
                   endpoints[endpoint].path, size));
    memcpy(text + head, body, size);
    size += head;
    size += (size_t)snprintf(text + size, room - size, "\r\n0\r\n\r\n");
    if (!fuzz_below(seed, 3))
        size = fuzz_mutate((uint8_t *)text, size, 80, seed);
    return size;
}

static void answer(const struct server_subject *subject, struct call_monitor *monitor, const struct http_message *message)
{
    struct call call = { .subject = subject, .monitor = monitor };
    enum http_status status = endpoints_answer(&call, message);
    char *text = call.answer ? json_dumps(call.answer, 0) : NULL;
    if (status < HTTP_OK || (status >= HTTP_BAD_REQUEST && !*call.err.text) || (call.answer && !text)) {
        fprintf(stderr, "%s %s was answered by %d without a word\n", message->method, message->target, status);
        abort();
    }
    free(text);
    json_decref(call.answer);
    json_decref(call.body);
}

int main(int argc, char **argv)
{
    const struct vmm_hooks hooks = { 0 };
    struct machine_config defaults = { 0 };
    struct error err;
    setenv("XDG_CACHE_HOME", "/proc/no/such/place", 1);     /* seeds are made, but not kept */
    struct vmm *vmm = vmm_create(&hooks, NULL, &err);
    const struct server_subject subject = { .vmm = vmm, .name = "fuzz", .defaults = &defaults };
    static struct http_parser parser;
    struct call_monitor monitor = { { NULL } };
    unsigned long rounds = fuzz_rounds(argc, argv, 300000), whole = 0;
    uint64_t seed = 0x9E3779B97F4A7C15ull;
    machine_config_defaults(&defaults);
    vmm_quit(vmm, END_NONE, 0);
    for (unsigned long round = 0; round < rounds; round++) {
        char text[4096];
        size_t size = make_request(text, sizeof(text), &seed), done = 0;
        http_begin(&parser, !fuzz_below(&seed, 50));
        while (done < size && parser.progress == HTTP_MORE) {
            size_t piece = 1 + fuzz_below(&seed, size - done);
            done += http_feed(&parser, text + done, piece);
        }
        if (parser.progress == HTTP_COMPLETE && !parser.is_response) {
            answer(&subject, &monitor, &parser.message);
            whole++;
        }
        http_end(&parser);
    }
    vmm_destroy(vmm);
    printf("%lu requests, %lu of them whole\n", rounds, whole);
    return whole ? 0 : 1;
}
