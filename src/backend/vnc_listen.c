#include "backend/vnc_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/base.h"
#include "base/error.h"
#include "base/listen.h"

enum { FIRST_PORT = 5900, DISPLAYS = 100, BACKLOG = 4 };

/* --- the text --- */

static bool copy(char *to, size_t size, const char *from, size_t length)
{
    if (length >= size)
        return false;
    memcpy(to, from, length);
    to[length] = 0;
    return true;
}

static bool parse_port(const char *text, size_t length, unsigned *port)
{
    char *end;
    unsigned long number = length && *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : ULONG_MAX;
    if (number > UINT16_MAX || end != text + length)
        return false;
    *port = number < DISPLAYS ? FIRST_PORT + (unsigned)number : (unsigned)number;
    return true;
}

/* An IPv6 address stands in brackets. */
static bool parse_host(const char *text, size_t length, struct vnc_address *address)
{
    unsigned char binary[sizeof(struct in6_addr)];
    bool brackets = length >= 2 && *text == '[' && text[length - 1] == ']';
    if (!length)
        return copy(address->host, sizeof(address->host), "127.0.0.1", 9);
    if (length == 9 && !memcmp(text, "localhost", 9))
        return copy(address->host, sizeof(address->host), "127.0.0.1", 9);
    return copy(address->host, sizeof(address->host), text + brackets, length - 2 * brackets) &&
           inet_pton(brackets ? AF_INET6 : AF_INET, address->host, binary) == 1;
}

static bool parse_place(const char *text, size_t length, struct vnc_address *address, struct error *err)
{
    if (!strncmp(text, "unix:", 5)) {
        if (length == 5 || !copy(address->path, sizeof(address->path), text + 5, length - 5))
            return error_set(err, "unix: needs a path of at most %zu characters", sizeof(address->path) - 1);
        return true;
    }
    const char *colon = memrchr(text, ':', length);
    if (colon && parse_host(text, (size_t)(colon - text), address) &&
        parse_port(colon + 1, (size_t)(text + length - colon - 1), &address->port))
        return true;
    return error_set(err, "'%.*s' is not where a VNC server can listen; write [ADDRESS]:DISPLAY, like :0, or unix:PATH", (int)length, text);
}

static bool is_loopback(const struct vnc_address *address)
{
    return !*address->host || !strncmp(address->host, "127.", 4) || !strcmp(address->host, "::1");
}

/* What follows a place. A file's name may have commas in it: it ends where another option begins. */
static const char password_option[] = ",password=", tls_option[] = ",tls=";

static const char *next_option(const char *text)
{
    const char *password = strstr(text, password_option), *tls = strstr(text, tls_option);
    return !password ? tls : !tls || password < tls ? password : tls;
}

static bool parse_option(const char *option, size_t length, struct vnc_address *address, struct error *err)
{
    bool password = !strncmp(option, password_option, sizeof(password_option) - 1);
    size_t name = password ? sizeof(password_option) - 1 : sizeof(tls_option) - 1;
    char *to = password ? address->password_file : address->tls;
    if (length > name && !*to && copy(to, PATH_MAX, option + name, length - name))
        return true;
    return password ? error_set(err, "password= needs the name of a file with the password in it")
                    : error_set(err, "tls= needs the name of a directory for a certificate; it is made there if there is none");
}

bool vnc_address_parse(const char *text, struct vnc_address *address, struct error *err)
{
    const char *option = next_option(text), *next;
    *address = (struct vnc_address){ 0 };
    if (!parse_place(text, option ? (size_t)(option - text) : strlen(text), address, err))
        return false;
    for (; option; option = next) {
        next = next_option(option + 1);
        if (!parse_option(option, next ? (size_t)(next - option) : strlen(option), address, err))
            return false;
    }
    if (!*address->password_file && !is_loopback(address))
        return error_set(err, "anybody who reaches %s could use the screen: add ',password=FILE', or listen on 127.0.0.1 or a Unix socket",
                         address->host);
    return true;
}

bool vnc_read_password(const char *path, char password[VNC_PASSWORD_MAX + 1], struct error *err)
{
    char line[64] = "";
    FILE *file = fopen(path, "re");
    if (!file)
        return error_errno(err, errno, "cannot read the password in %s", path);
    bool read = fgets(line, sizeof(line), file);
    fclose(file);
    line[strcspn(line, "\r\n")] = 0;
    size_t length = strlen(line);
    if (!read || !length)
        return error_set(err, "there is no password in the first line of %s", path);
    if (length > VNC_PASSWORD_MAX)
        return error_set(err, "VNC knows no passwords longer than %d characters; that in %s is", VNC_PASSWORD_MAX, path);
    memcpy(password, line, length + 1);
    return true;
}

/* --- the socket --- */

_Static_assert(sizeof(((struct vnc_address *)0)->path) == sizeof(((struct sockaddr_un *)0)->sun_path), "a path that was accepted fits");

static int listen_tcp(const struct vnc_address *address, struct error *err)
{
    struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons((uint16_t)address->port) };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)address->port) };
    bool is_v4 = inet_pton(AF_INET, address->host, &v4.sin_addr) == 1;
    const int one = 1;
    if (!is_v4)
        inet_pton(AF_INET6, address->host, &v6.sin6_addr);
    const struct sockaddr *name = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    int fd = socket(name->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0 &&
        bind(fd, name, is_v4 ? sizeof(v4) : sizeof(v6)) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    error_errno(err, errno, "cannot listen for VNC on %s, port %u", address->host, address->port);
    if (fd >= 0)
        close(fd);
    return -1;
}

int vnc_listen(const struct vnc_address *address, struct error *err)
{
    return *address->path ? listen_unix(address->path, SOCK_NONBLOCK, BACKLOG, err) : listen_tcp(address, err);
}
