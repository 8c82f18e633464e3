/* Texts of ours in JSON. */
#ifndef DOPPEL_API_JSON_TEXT_H
#define DOPPEL_API_JSON_TEXT_H

#include <jansson.h>

/* Any thread. JSON is UTF-8; a path, or a sentence that names one, need not be: then what is not ASCII becomes '?'. NULL: no memory. */
json_t *json_text(const char *text);

#endif
