/* `doppel info NAME`. */
#include <stdio.h>
#include <string.h>

#include "api/instance.h"
#include "base/base.h"
#include "cli/arguments.h"
#include "cli/remote.h"

static void print_text(const char *label, const json_t *text)
{
    if (json_is_string(text))
        printf("%-14s %s\n", label, json_string_value(text));
}

static void print_console(const char *label, const json_t *console)
{
    const char *mode = json_string_value(json_object_get(console, "mode"));
    const char *file = json_string_value(json_object_get(console, "file")), *socket = json_string_value(json_object_get(console, "socket"));
    if (mode)
        printf("%-14s %s%s%s\n", label, mode, file || socket ? " " : "", file ? file : socket ? socket : "");
}

/* CD-ROM drives by name, as 'doppel media' takes it. */
static void print_disk(const json_t *disk)
{
    const char *path = json_string_value(json_object_get(disk, "path")), *socket = json_string_value(json_object_get(disk, "vhost_socket"));
    const char *bus = json_string_value(json_object_get(disk, "doppel_bus"));
    if (bus && !strcmp(bus, "cdrom"))
        printf("%-14s %s: %s\n", "CD-ROM drive", json_string_value(json_object_get(disk, "id")), path ? path : "empty");
    else
        printf("%-14s %s%s\n", "disk", path ? path : socket ? socket : "?", json_is_true(json_object_get(disk, "readonly")) ? " (read-only)" : "");
}

static void print_config(json_t *config)
{
    json_t *payload = json_object_get(config, "payload"), *item;
    size_t i;
    printf("%-14s %lld\n", "processors", (long long)json_integer_value(json_object_get(json_object_get(config, "cpus"), "boot_vcpus")));
    printf("%-14s %lld MiB\n", "memory", (long long)json_integer_value(json_object_get(json_object_get(config, "memory"), "size")) /
                                             (long long)MiB);
    print_text("kernel", json_object_get(payload, "kernel"));
    print_text("initrd", json_object_get(payload, "initramfs"));
    print_text("command line", json_object_get(payload, "cmdline"));
    json_array_foreach(json_object_get(config, "disks"), i, item)
        print_disk(item);
    json_array_foreach(json_object_get(config, "net"), i, item) {
        const char *tap = json_string_value(json_object_get(item, "tap")), *other = json_string_value(json_object_get(item, "doppel_backend"));
        printf("%-14s %s%s\n", "network", tap ? "tap " : "", tap ? tap : other ? other : "?");
    }
    print_console("console", json_object_get(config, "serial"));
    print_text("vnc", json_object_get(json_object_get(config, "doppel"), "vnc"));
}

static void print_own(const json_t *own)
{
    print_text("engine", json_object_get(own, "engine"));
    if (!json_object_get(own, "instructions"))
        return;
    printf("%-14s %.1f s\n", "guest's clock", (double)json_integer_value(json_object_get(own, "guest_ns")) / 1e9);
    printf("%-14s %lld\n", "instructions", (long long)json_integer_value(json_object_get(own, "instructions")));
    if (json_integer_value(json_object_get(own, "guest_panics")))
        printf("%-14s %lld\n", "panics", (long long)json_integer_value(json_object_get(own, "guest_panics")));
    if (json_integer_value(json_object_get(own, "watchdog_expiries")))
        printf("%-14s %lld\n", "watchdog", (long long)json_integer_value(json_object_get(own, "watchdog_expiries")));
    printf("%-14s %lld MiB\n", "granted", (long long)json_integer_value(json_object_get(own, "memory_granted")) / (long long)MiB);
}

static void print_devices(json_t *tree)
{
    const char *name;
    json_t *node;
    json_object_foreach(tree, name, node) {
        const char *address = json_string_value(json_object_get(node, "pci_bdf"));
        printf("%-14s %s%s%s\n", "device", name, address ? " at " : "", address ? address : "");
    }
}

static int show(const char *name, struct client *client, bool as_json)
{
    int status;
    json_t *own = remote_get(client, name, "/doppel/v1/info", &status);
    json_t *vm = own ? remote_get(client, name, "/api/v1/vm.info", &status) : NULL;
    if (vm && as_json) {
        json_t *both = json_pack("{s:O, s:O}", "vm", vm, "doppel", own);
        json_dumpf(both, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(both);
    } else if (vm) {
        printf("%-14s %s\n", "name", name);
        print_text("state", json_object_get(vm, "state"));
        print_own(own);
        print_config(json_object_get(vm, "config"));
        print_devices(json_object_get(vm, "device_tree"));
    }
    status = vm ? EXIT_DONE : status;
    json_decref(vm);
    json_decref(own);
    return status;
}

int command_info(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_info, 1, 1, argc, argv);
    if (status >= 0)
        return status;
    struct client *client = remote_open(arguments.word[0], REMOTE_SECONDS, &status);
    if (client)
        status = show(arguments.word[0], client, arguments.value[FLAG_info_json]);
    client_close(client);
    return status;
}
