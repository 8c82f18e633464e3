/*
 * TCP. net serve PORT answers on the loopback; net send|receive|request|connect ADDRESS PORT measures as its client:
 * 1 MiB one way, a byte to and fro, a connection made and closed.
 */
#include "unit.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 1 << 17, SEND = 's', RECEIVE = 'r', REQUEST = 'q', CONNECT = 'c' };

static struct sockaddr_in peer = { .sin_family = AF_INET };
static char data[CHUNK];
static int connection;

static void all(ssize_t done, size_t wanted, const char *what)
{
    if (done != (ssize_t)wanted)
        give_up(what);
}

static ssize_t read_all(int from, size_t size)
{
    size_t got = 0;
    while (got < size) {
        ssize_t n = read(from, data, size - got < CHUNK ? size - got : CHUNK);
        if (n <= 0)
            return (ssize_t)got;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

/* What a connection is for is its first byte. Each unit is 1 MiB, acknowledged with a byte, or one byte. */
static void answer(int client)
{
    char c;
    if (read(client, &c, 1) != 1)
        return;
    if (c == SEND)
        while (read_all(client, 1 << 20) == 1 << 20 && write(client, &c, 1) == 1)
            ;
    if (c == RECEIVE)
        while (read(client, &c, 1) == 1)
            for (int i = 0; i < (1 << 20) / CHUNK; i++)
                all(write(client, data, CHUNK), CHUNK, "write");
    if (c == REQUEST)
        while (read(client, &c, 1) == 1 && write(client, &c, 1) == 1)
            ;
}

static int serve(void)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&peer, sizeof(peer)) || listen(listener, 128))
        give_up("listen");
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (client >= 0 && fork() == 0) {
            close(listener);
            answer(client);
            _exit(0);
        }
        close(client);
    }
}

static int dial(char purpose)
{
    int one = 1, client = socket(AF_INET, SOCK_STREAM, 0);
    if (client < 0 || connect(client, (struct sockaddr *)&peer, sizeof(peer)))
        give_up("connect");
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    all(write(client, &purpose, 1), 1, "write");
    return client;
}

static uint64_t send_unit(void)
{
    for (int i = 0; i < (1 << 20) / CHUNK; i++)
        all(write(connection, data, CHUNK), CHUNK, "write");
    all(read_all(connection, 1), 1, "acknowledgement");
    return 1 << 20;
}

static uint64_t receive_unit(void)
{
    all(write(connection, data, 1), 1, "write");
    all(read_all(connection, 1 << 20), 1 << 20, "read");
    return 1 << 20;
}

static uint64_t request_unit(void)
{
    for (int i = 0; i < 50; i++) {
        all(write(connection, data, 1), 1, "write");
        all(read_all(connection, 1), 1, "read");
    }
    return 50;
}

static uint64_t connect_unit(void)
{
    for (int i = 0; i < 10; i++)
        close(dial(CONNECT));
    return 10;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "serve", "send", "receive", "request", "connect", NULL };
    static uint64_t (*const units[])(void) = { NULL, send_unit, receive_unit, request_unit, connect_unit };
    int which = chosen(argc, argv, words);
    if (argc < 3 + (which > 0))
        return 2;
    peer.sin_port = htons((uint16_t)atoi(argv[argc - 1]));
    if (which == 0)
        return serve();
    peer.sin_addr.s_addr = inet_addr(argv[2]);
    connection = dial(" srqc"[which]);
    return measure(units[which]);
}
