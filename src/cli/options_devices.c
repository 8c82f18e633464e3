/* Screens, consoles, network cards and the rest of the devices. */
#include <stdio.h>
#include <string.h>

#include "api/console.h"
#include "backend/vnc.h"
#include "cli/options_internal.h"

bool option_display(struct options *options, const char *value, struct error *err)
{
    options->config.no_display = !strcmp(value, "none");
    options->config.display = !strcmp(value, "vga");
    return options->config.no_display || options->config.display ||
           error_set(err, "'%s' is not a display; there are vga and none", value);
}

bool option_input(struct options *options, const char *value, struct error *err)
{
    options->config.usb = !strcmp(value, "usb");
    options->config.display |= options->config.usb;
    return options->config.usb || !strcmp(value, "ps2") || error_set(err, "'%s' is no input; there are ps2 and usb", value);
}

bool option_vnc(struct options *options, const char *value, struct error *err)
{
    options->config.vnc = value;
    return vnc_check(value, err);
}

/* The beginning of every text for a character backend. */
static bool check_chardev(const char *value, bool stdio, struct error *err)
{
    if ((stdio && !strcmp(value, "stdio")) || !strcmp(value, "pty") || !strcmp(value, "none") ||
        (!strncmp(value, "file:", 5) && value[5]) || (!strncmp(value, "socket:", 7) && value[7]) ||
        (!strncmp(value, "fd:", 3) && value[3]))
        return true;
    return error_set(err, "'%s' is not something to connect to; there are %spty, file:FILE, socket:FILE, fd:N and none", value,
                     stdio ? "stdio, " : "");
}

bool option_console(struct options *options, const char *value, struct error *err)
{
    options->config.console = value;
    return !strcmp(value, CONSOLE_SHARED) || check_chardev(value, true, err);
}

bool option_virtio_console(struct options *options, const char *value, struct error *err)
{
    options->config.virtio_console = value;
    return check_chardev(value, true, err);
}

bool option_debug_console(struct options *options, const char *value, struct error *err)
{
    options->config.debug_console = value;
    return check_chardev(value, true, err);
}

bool option_monitor(struct options *options, const char *value, struct error *err)
{
    options->monitor = strcmp(value, "none") ? value : NULL;
    return check_chardev(value, false, err);
}

bool option_debug_exit(struct options *options, const char *value, struct error *err)
{
    options->config.debug_exit = true;
    return true;
}

bool option_rng(struct options *options, const char *value, struct error *err)
{
    options->config.rng = true;
    return true;
}

bool option_no_rng(struct options *options, const char *value, struct error *err)
{
    options->config.rng = false;
    return true;
}

static bool parse_action(const char *value, enum machine_action *action, struct error *err)
{
    static const char *const names[] = { [MACHINE_ACTION_END] = "end", [MACHINE_ACTION_RESET] = "reset", [MACHINE_ACTION_NONE] = "none" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcmp(value, names[i])) {
            *action = (enum machine_action)i;
            return true;
        }
    return error_set(err, "'%s' is nothing that can be done then; there are end, reset and none", value);
}

bool option_watchdog(struct options *options, const char *value, struct error *err)
{
    options->config.watchdog = true;
    return parse_action(value, &options->config.on_watchdog, err);
}

bool option_on_panic(struct options *options, const char *value, struct error *err)
{
    return parse_action(value, &options->config.on_panic, err);
}

bool option_device(struct options *options, const char *value, struct error *err)
{
    if (options->config.extra_count == MACHINE_EXTRA_MAX)
        return error_set(err, "a machine takes at most %d further devices", MACHINE_EXTRA_MAX);
    options->config.extra[options->config.extra_count++] = value;
    return true;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
    int used = 0;
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5],
                  &used) == 6 && !text[used] && !(mac[0] & 1);
}

/* Takes the value of ",NAME=" out of the text, if that is there; the rest is the backend's. False: there is none. */
static bool take_part(char *text, const char *name, char *value, size_t size)
{
    char *part = text;
    size_t length = strlen(name);
    while ((part = strchr(part, ',')) && (strncmp(part + 1, name, length) || part[1 + length] != '='))
        part++;
    if (!part)
        return false;
    char *begin = part + length + 2, *end = begin + strcspn(begin, ",");
    snprintf(value, size, "%.*s", (int)(end - begin), begin);
    memmove(part, end, strlen(end) + 1);
    return true;
}

bool option_net(struct options *options, const char *value, struct error *err)
{
    if (!strcmp(value, "none")) {
        options->config.net_count = 0;
        return true;
    }
    if (strncmp(value, "user", 4) && strncmp(value, "tap", 3))
        return error_set(err, "'%s' is not a network; there are user, tap and none", value);
    if (options->config.net_count == MACHINE_NETS_MAX)
        return error_set(err, "a machine has at most %d network cards", MACHINE_NETS_MAX);
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    struct net_config *net = &options->config.net[options->config.net_count++];
    *net = (struct net_config){ .backend = text };
    char address[32], model[32], boot[8];
    if (take_part(text, "mac", address, sizeof(address)) && !parse_mac(address, net->mac))
        return error_set(err, "'%s' is not a network card's address; write it like 52:54:00:12:34:56", address);
    if (take_part(text, "boot", boot, sizeof(boot)) && !(net->boot = !strcmp(boot, "on")) && strcmp(boot, "off"))
        return error_set(err, "boot= is on or off, not '%s'", boot);
    if (!take_part(text, "model", model, sizeof(model)))
        return true;
    net->model = strcmp(model, "e1000") ? NET_MODEL_VIRTIO : NET_MODEL_E1000;
    return net->model == NET_MODEL_E1000 || !strcmp(model, "virtio") ||
           error_set(err, "'%s' is not a network card; there are virtio and e1000", model);
}
