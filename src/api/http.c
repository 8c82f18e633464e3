#include "api/http.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/base.h"

enum phase { START_LINE, FIELDS, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS };

const char *http_phrase(enum http_status status)
{
    switch (status) {
#define HTTP_STATUS(name, code, phrase) case HTTP_##name: return phrase;
#include "api/http_status.def"
#undef HTTP_STATUS
    }
    return "?";
}

void http_begin(struct http_parser *parser, bool is_response)
{
    memset(parser, 0, offsetof(struct http_parser, line));
    parser->is_response = is_response;
    parser->message.keep_alive = true;
}

void http_end(struct http_parser *parser)
{
    free(parser->message.body);
    parser->message.body = NULL;
}

bool http_has_begun(const struct http_parser *parser)
{
    return parser->head_size != 0;
}

bool http_body_is_due(const struct http_parser *parser)
{
    return parser->progress == HTTP_MORE && (parser->phase == BODY || parser->phase == CHUNK_SIZE);
}

static void fail(struct http_parser *parser, enum http_status error, const char *reason)
{
    parser->progress = HTTP_FAILED;
    parser->error = error;
    parser->reason = reason;
}

/* --- the body --- */

/* Grows as bytes arrive, never by what the peer promises. */
static void add_body(struct http_parser *parser, const char *data, size_t size)
{
    struct http_message *message = &parser->message;
    if (size > HTTP_BODY_MAX - message->body_size) {
        fail(parser, HTTP_CONTENT_TOO_LARGE, "the body is larger than a mebibyte");
        return;
    }
    char *grown = realloc(message->body, message->body_size + size + 1);
    if (!grown) {
        fail(parser, HTTP_INTERNAL_ERROR, "there is no memory for the body");
        return;
    }
    memcpy(grown + message->body_size, data, size);
    message->body = grown;
    message->body_size += size;
    grown[message->body_size] = 0;
}

static size_t take_body(struct http_parser *parser, const char *data, size_t size)
{
    size = size < parser->left ? size : parser->left;
    add_body(parser, data, size);
    parser->left -= size;
    if (parser->progress != HTTP_MORE || parser->left)
        return size;
    if (parser->phase == BODY)
        parser->progress = HTTP_COMPLETE;
    else
        parser->phase = CHUNK_END;
    return size;
}

/* After the empty line that ends the fields. RFC 9112 §6.3: a request without either has no body. */
static void begin_body(struct http_parser *parser)
{
    if (parser->chunked && parser->has_length)
        fail(parser, HTTP_BAD_REQUEST, "a message has a Content-Length or is chunked, not both");
    else if (parser->chunked)
        parser->phase = CHUNK_SIZE;
    else if (parser->left > HTTP_BODY_MAX)
        fail(parser, HTTP_CONTENT_TOO_LARGE, "the body is larger than a mebibyte");
    else if (parser->left)
        parser->phase = BODY;
    else
        parser->progress = HTTP_COMPLETE;
}

/* --- lines --- */

/* Digits of the base alone, at most 8 of them; more is larger than any body. */
static bool parse_length(const char *text, int base, size_t *value)
{
    size_t digits = strspn(text, base == 16 ? "0123456789abcdefABCDEF" : "0123456789");
    if (!digits || text[digits])
        return false;
    *value = digits > 8 ? SIZE_MAX : strtoul(text, NULL, base);
    return true;
}

/* RFC 9110 §5.6.2: what methods and field names are made of. */
static bool is_token(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++)
        if (!isalnum((unsigned char)*text) && !strchr("!#$%&'*+-.^_`|~", *text))
            return false;
    return true;
}

/* RFC 9112 §3.2: an origin-form target. */
static bool is_path(const char *text)
{
    bool path = *text == '/';
    for (; *text; text++)
        path &= *text > ' ' && *text < 0x7F;
    return path;
}

static bool check_version(struct http_parser *parser, const char *version)
{
    if (!strcmp(version, "HTTP/1.1"))
        return true;
    if (strcmp(version, "HTTP/1.0")) {
        fail(parser, strncmp(version, "HTTP/", 5) ? HTTP_BAD_REQUEST : HTTP_VERSION_NOT_SUPPORTED, "this is not HTTP/1.1");
        return false;
    }
    parser->message.keep_alive = false;
    return true;
}

/* METHOD SP TARGET SP VERSION */
static void request_line(struct http_parser *parser)
{
    struct http_message *message = &parser->message;
    char *target = strchr(parser->line, ' '), *version = target ? strchr(target + 1, ' ') : NULL;
    if (!version) {
        fail(parser, HTTP_BAD_REQUEST, "the request line is not METHOD TARGET VERSION");
        return;
    }
    *target++ = *version++ = 0;
    if (!is_token(parser->line) || !is_path(target) || strlen(parser->line) >= sizeof(message->method))
        fail(parser, HTTP_BAD_REQUEST, "the request line is not METHOD /PATH VERSION");
    else if (strlen(target) >= sizeof(message->target))
        fail(parser, HTTP_NOT_FOUND, "no path here is that long");
    if (parser->progress != HTTP_MORE || !check_version(parser, version))
        return;
    strcpy(message->method, parser->line);
    strcpy(message->target, target);
    parser->phase = FIELDS;
}

/* VERSION SP STATUS [SP PHRASE] */
static void status_line(struct http_parser *parser)
{
    char *status = strchr(parser->line, ' ');
    if (!status || strspn(status + 1, "0123456789") != 3 || (status[4] && status[4] != ' ')) {
        fail(parser, HTTP_BAD_REQUEST, "the answer is not HTTP");
        return;
    }
    *status++ = 0;
    parser->message.status = atoi(status);
    if (check_version(parser, parser->line))
        parser->phase = FIELDS;
}

static void length_field(struct http_parser *parser, const char *value)
{
    size_t length;
    if (!parse_length(value, 10, &length) || (parser->has_length && length != parser->left)) {
        fail(parser, HTTP_BAD_REQUEST, "the Content-Length is not one number");
        return;
    }
    parser->has_length = true;
    parser->left = length;
}

/* NAME ":" OWS VALUE OWS. Fields that change how a message is read are looked at, all others passed over. */
static void field_line(struct http_parser *parser)
{
    char *value = strchr(parser->line, ':');
    if (value)
        *value++ = 0;
    if (!value || !is_token(parser->line)) {
        fail(parser, HTTP_BAD_REQUEST, "a header field is not NAME: VALUE");
        return;
    }
    value += strspn(value, " \t");
    for (size_t size = strlen(value); size && (value[size - 1] == ' ' || value[size - 1] == '\t'); size--)
        value[size - 1] = 0;
    if (!strcasecmp(parser->line, "Content-Length"))
        length_field(parser, value);
    else if (!strcasecmp(parser->line, "Transfer-Encoding") && !strcasecmp(value, "chunked") && !parser->chunked)
        parser->chunked = true;
    else if (!strcasecmp(parser->line, "Transfer-Encoding"))
        fail(parser, HTTP_NOT_IMPLEMENTED, "the only transfer encoding here is chunked");
    else if (!strcasecmp(parser->line, "Connection") && !strcasecmp(value, "close"))
        parser->message.keep_alive = false;
    else if (!strcasecmp(parser->line, "Expect") && !strcasecmp(value, "100-continue"))
        parser->message.expects_continue = true;
}

/* SIZE [";" EXTENSION]; a chunk of size 0 is the last. */
static void chunk_line(struct http_parser *parser)
{
    parser->line[strcspn(parser->line, "; \t")] = 0;
    if (!parse_length(parser->line, 16, &parser->left))
        fail(parser, HTTP_BAD_REQUEST, "the size of a chunk is not a hexadecimal number");
    else if (parser->left > HTTP_BODY_MAX)
        fail(parser, HTTP_CONTENT_TOO_LARGE, "the body is larger than a mebibyte");
    else
        parser->phase = parser->left ? CHUNK_DATA : TRAILERS;
}

static void take_line(struct http_parser *parser)
{
    bool empty = !parser->line_size;
    switch ((enum phase)parser->phase) {
    case START_LINE:
        parser->is_response ? status_line(parser) : request_line(parser);
        break;
    case FIELDS:
        empty ? begin_body(parser) : field_line(parser);
        break;
    case CHUNK_SIZE:
        chunk_line(parser);
        break;
    case CHUNK_END:
        if (empty)
            parser->phase = CHUNK_SIZE;
        else
            fail(parser, HTTP_BAD_REQUEST, "a chunk is longer than its size says");
        break;
    case TRAILERS:
        if (empty)
            parser->progress = HTTP_COMPLETE;
        break;
    case BODY:
    case CHUNK_DATA:
        break;
    }
}

static void take_byte(struct http_parser *parser, char byte)
{
    bool after_cr = parser->line_size && parser->line[parser->line_size - 1] == '\r';
    if (++parser->head_size > HTTP_HEAD_MAX) {
        fail(parser, HTTP_FIELDS_TOO_LARGE, "the header is larger than 16 KiB");
    } else if (byte == '\n' && after_cr) {
        parser->line[--parser->line_size] = 0;
        take_line(parser);
        parser->line_size = 0;
    } else if (after_cr || byte == '\n' || (iscntrl((unsigned char)byte) && byte != '\r' && byte != '\t')) {
        fail(parser, HTTP_BAD_REQUEST, "a line of the header has a control character, or does not end in CR and LF");
    } else if (parser->line_size == HTTP_LINE_MAX - 1) {
        fail(parser, HTTP_FIELDS_TOO_LARGE, "a line of the header is longer than 4 KiB");
    } else {
        parser->line[parser->line_size++] = byte;
    }
}

size_t http_feed(struct http_parser *parser, const char *data, size_t size)
{
    size_t done = 0;
    while (done < size && parser->progress == HTTP_MORE) {
        if (parser->phase == BODY || parser->phase == CHUNK_DATA)
            done += take_body(parser, data + done, size - done);
        else
            take_byte(parser, data[done++]);
    }
    return done;
}
