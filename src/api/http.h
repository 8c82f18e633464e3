/*
 * HTTP/1.1 messages as bytes arrive (RFC 9112): requests for the server, responses for our own client. Strict and bounded: lines end in
 * CRLF, a body has a Content-Length or is chunked, and anything else is an error with the status that answers it. Reads no descriptor
 * and knows no socket, so it can be tested and fuzzed with plain bytes.
 */
#ifndef DOPPEL_API_HTTP_H
#define DOPPEL_API_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum {
    HTTP_LINE_MAX = 4096,
    HTTP_HEAD_MAX = 16 * 1024,          /* all lines of one message, those of chunks included */
    HTTP_BODY_MAX = 1024 * 1024,
    HTTP_METHOD_MAX = 16,
    HTTP_TARGET_MAX = 256,
};

/* Status codes of RFC 9110 §15 that are used here. */
enum http_status {
#define HTTP_STATUS(name, code, phrase) HTTP_##name = code,
#include "api/http_status.def"
#undef HTTP_STATUS
};

enum http_progress { HTTP_MORE, HTTP_COMPLETE, HTTP_FAILED };

struct http_message {
    char method[HTTP_METHOD_MAX];       /* of a request */
    char target[HTTP_TARGET_MAX];
    int status;                         /* of a response */
    bool keep_alive;                    /* further messages may follow on the connection */
    bool expects_continue;              /* the peer waits for 100 before it sends the body */
    char *body;                         /* ends in a zero byte that is not counted; NULL: none */
    size_t body_size;
};

struct http_parser {
    struct http_message message;        /* whole once progress is HTTP_COMPLETE */
    enum http_progress progress;
    enum http_status error;             /* HTTP_FAILED: what to answer */
    const char *reason;                 /* HTTP_FAILED: one sentence, static */
    int phase;
    bool is_response, chunked, has_length;
    size_t left;                        /* of the body or chunk */
    size_t head_size, line_size;
    char line[HTTP_LINE_MAX];
};

void http_begin(struct http_parser *parser, bool is_response);
/* Takes bytes until the message is whole or wrong, and returns how many; what is left belongs to the next message. */
size_t http_feed(struct http_parser *parser, const char *data, size_t size);
/* True once something of a message has arrived. */
bool http_has_begun(const struct http_parser *parser);
/* True while the fields have been read and bytes of the body are still to come. */
bool http_body_is_due(const struct http_parser *parser);
/* Frees the body. http_begin makes the parser ready again. */
void http_end(struct http_parser *parser);

const char *http_phrase(enum http_status status);

#endif
