/* HTTP messages, byte by byte and in every other cut: what is taken, what is refused with which status, and what is left for the next. */
#include <stdlib.h>
#include <string.h>

#include "api/http.h"
#include "cmocka_all.h"

static struct http_parser parser;

/* Feeds the text in pieces of that size; returns how much was taken. */
static size_t feed(const char *text, size_t piece, bool is_response)
{
    size_t size = strlen(text), done = 0;
    http_end(&parser);
    http_begin(&parser, is_response);
    while (done < size && parser.progress == HTTP_MORE) {
        size_t part = piece < size - done ? piece : size - done;
        done += http_feed(&parser, text + done, part);
    }
    return done;
}

static void refused(const char *text, int status)
{
    for (size_t piece = 1; piece < 70; piece += 23) {
        feed(text, piece, false);
        if (parser.progress != HTTP_FAILED || (int)parser.error != status)
            fail_msg("'%.60s' was answered by %d (progress %d), not %d", text, parser.error, parser.progress, status);
        assert_non_null(parser.reason);
    }
}

static void a_request_is_the_same_in_every_cut(void **state)
{
    static const char text[] = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Other:  \t y z \r\n\r\nhelloGET";
    for (size_t piece = 1; piece <= sizeof(text); piece++) {
        assert_int_equal(feed(text, piece, false), sizeof(text) - 1 - 3);
        assert_int_equal(parser.progress, HTTP_COMPLETE);
        assert_string_equal(parser.message.method, "PUT");
        assert_string_equal(parser.message.target, "/api/v1/vm.create");
        assert_string_equal(parser.message.body, "hello");
        assert_int_equal(parser.message.body_size, 5);
        assert_true(parser.message.keep_alive);
    }
    http_end(&parser);
}

static void bodies_in_chunks(void **state)
{
    static const char text[] = "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;name=value\r\n, and more\r\n0\r\n"
                               "Trailer: x\r\n\r\n";
    for (size_t piece = 1; piece <= sizeof(text); piece++) {
        assert_int_equal(feed(text, piece, false), sizeof(text) - 1);
        assert_int_equal(parser.progress, HTTP_COMPLETE);
        assert_string_equal(parser.message.body, "hello, and more");
    }
    http_end(&parser);
}

static void what_a_connection_is_told(void **state)
{
    feed("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 100, false);
    assert_false(parser.message.keep_alive);
    feed("GET / HTTP/1.0\r\n\r\n", 100, false);
    assert_false(parser.message.keep_alive);
    assert_null(parser.message.body);
    feed("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", 100, false);
    assert_true(parser.message.expects_continue && http_body_is_due(&parser));
    feed("GET", 100, false);
    assert_true(http_has_begun(&parser) && !http_body_is_due(&parser));
    feed("", 1, false);
    assert_false(http_has_begun(&parser));
}

static void responses(void **state)
{
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    assert_int_equal(feed(text, 1, true), sizeof(text) - 1);
    assert_int_equal(parser.message.status, 200);
    assert_string_equal(parser.message.body, "{}");
    feed("HTTP/1.1 204\r\n\r\n", 3, true);
    assert_int_equal(parser.progress, HTTP_COMPLETE);
    assert_int_equal(parser.message.status, 204);
    feed("HELO\r\n\r\n", 3, true);
    assert_int_equal(parser.progress, HTTP_FAILED);
    http_end(&parser);
}

static void malformed_requests_are_refused(void **state)
{
    refused("GET /\r\n\r\n", 400);
    refused("GET  / HTTP/1.1\r\n\r\n", 400);
    refused("G(T / HTTP/1.1\r\n\r\n", 400);
    refused("GET http://x/ HTTP/1.1\r\n\r\n", 400);
    refused("GET /\x80 HTTP/1.1\r\n\r\n", 400);
    refused("GET / HTTP/2.0\r\n\r\n", 505);
    refused("GET / FTP\r\n\r\n", 400);
    refused("\r\nGET / HTTP/1.1\r\n\r\n", 400);
    refused("GET / HTTP/1.1\nHost: x\r\n\r\n", 400);
    refused("GET / HTTP/1.1\rHost: x\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nSpace : x\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\n folded\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nA: \x01\r\n\r\n", 400);
}

static void lengths_that_could_be_read_in_two_ways_are_refused(void **state)
{
    refused("PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400);
    refused("PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501);
    refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400);
    refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400);
    feed("PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 100, false);
    assert_int_equal(parser.progress, HTTP_COMPLETE);
}

static void sizes_are_bounded(void **state)
{
    refused("PUT / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413);
    refused("PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413);
    refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 413);
    char *text = malloc(64 * 1024), *at = text + sprintf(text, "GET / HTTP/1.1\r\n");
    memset(at, 'a', 8192);
    at[8192] = 0;
    refused(text, 431);
    for (unsigned i = 0; i < 1000; i++)
        at += sprintf(at, "Name: abcdefghijklmn\r\n");
    refused(text, 431);
    sprintf(text, "GET /%0*d HTTP/1.1\r\n", 300, 0);
    refused(text, 404);
    free(text);
}

/* Chunks that are each small enough, but not together. */
static void a_body_in_chunks_is_bounded_as_a_whole(void **state)
{
    static char chunk[64 * 1024 + 16];
    int head = sprintf(chunk, "10000\r\n");
    memset(chunk + head, 'x', 0x10000);
    strcpy(chunk + head + 0x10000, "\r\n");
    feed("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 100, false);
    for (unsigned i = 0; i < 100 && parser.progress == HTTP_MORE; i++)
        http_feed(&parser, chunk, (size_t)head + 0x10000 + 2);
    assert_int_equal(parser.progress, HTTP_FAILED);
    assert_int_equal(parser.error, 413);
    http_end(&parser);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_the_same_in_every_cut),
        cmocka_unit_test(bodies_in_chunks),
        cmocka_unit_test(what_a_connection_is_told),
        cmocka_unit_test(responses),
        cmocka_unit_test(malformed_requests_are_refused),
        cmocka_unit_test(lengths_that_could_be_read_in_two_ways_are_refused),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(a_body_in_chunks_is_bounded_as_a_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
