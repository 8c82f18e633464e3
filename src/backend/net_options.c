/* The text of a network backend: "user[,hostfwd=...]...[,tftp=FOLDER][,bootfile=FILE][,restrict=on]" or "tap[,ifname=NAME]". */
#include "backend/net_internal.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static bool parse_port(const char *text, uint16_t *port)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < 1 || value > 65535)
        return false;
    *port = (uint16_t)value;
    return true;
}

/* "[address]:port" */
static bool parse_end(char *text, struct in_addr *address, uint16_t *port)
{
    char *colon = strrchr(text, ':');
    if (!colon)
        return false;
    *colon = 0;
    address->s_addr = 0;
    return (!*text || inet_pton(AF_INET, text, address) == 1) && parse_port(colon + 1, port);
}

/* "tcp:[hostaddr]:port-[guestaddr]:port"; writes into `text`. */
static bool parse_hostfwd(char *text, struct net_hostfwd *forward)
{
    char *host = strchr(text, ':'), *guest = strchr(text, '-');
    if (!host || !guest || guest < host)
        return false;
    *host++ = 0;
    *guest++ = 0;
    forward->udp = strcmp(text, "udp") == 0;
    if (!forward->udp && strcmp(text, "tcp") != 0 && *text)
        return false;
    return parse_end(host, &forward->host, &forward->host_port) && parse_end(guest, &forward->guest, &forward->guest_port);
}

static bool add_hostfwd(const char *value, struct net_options *options, struct error *err)
{
    char copy[128];
    if (options->hostfwd_count == NET_HOSTFWD_MAX)
        return error_set(err, "at most %d hostfwd= for one network", NET_HOSTFWD_MAX);
    if (strlen(value) >= sizeof(copy))
        return error_set(err, "hostfwd=%.40s... is too long", value);
    strcpy(copy, value);
    if (!parse_hostfwd(copy, &options->hostfwd[options->hostfwd_count]))
        return error_set(err, "hostfwd=%s is malformed: write hostfwd=tcp:[host address]:port-[guest address]:port", value);
    options->hostfwd_count++;
    return true;
}

static bool take_text(const char *name, const char *value, char *text, size_t size, struct error *err)
{
    if (!*value || strlen(value) >= size)
        return error_set(err, "%s= has 1 to %zu characters", name, size - 1);
    strcpy(text, value);
    return true;
}

static bool parse_option(char *option, struct net_options *options, struct error *err)
{
    char *value = strchr(option, '=');
    if (!value)
        return error_set(err, "the network option \"%s\" needs a value", option);
    *value++ = 0;
    if (options->kind == NET_USER && strcmp(option, "hostfwd") == 0)
        return add_hostfwd(value, options, err);
    if (options->kind == NET_USER && strcmp(option, "restrict") == 0) {
        options->restricted = strcmp(value, "on") == 0;
        return options->restricted || strcmp(value, "off") == 0 || error_set(err, "restrict= is on or off, not %s", value);
    }
    if (options->kind == NET_USER && strcmp(option, "tftp") == 0)
        return take_text(option, value, options->tftp, sizeof(options->tftp), err);
    if (options->kind == NET_USER && strcmp(option, "bootfile") == 0)
        return take_text(option, value, options->bootfile, sizeof(options->bootfile), err);
    if (options->kind == NET_TAP && strcmp(option, "ifname") == 0)
        return take_text(option, value, options->ifname, sizeof(options->ifname), err);
    return error_set(err, "the network option \"%s\" is not known for %s", option, options->kind == NET_USER ? "user" : "tap");
}

bool net_options_parse(const char *text, struct net_options *options, struct error *err)
{
    char copy[2048], *save = NULL;
    memset(options, 0, sizeof(*options));
    if (strlen(text) >= sizeof(copy))
        return error_set(err, "the network options are too long");
    strcpy(copy, text);
    char *part = strtok_r(copy, ",", &save);
    if (part && strcmp(part, "user") == 0)
        options->kind = NET_USER;
    else if (part && strcmp(part, "tap") == 0)
        options->kind = NET_TAP;
    else
        return error_set(err, "\"%s\" is no network: use user[,hostfwd=...] or tap[,ifname=NAME]", part ? part : "");
    while ((part = strtok_r(NULL, ",", &save)))
        if (!parse_option(part, options, err))
            return false;
    return true;
}
