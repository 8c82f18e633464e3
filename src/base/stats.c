#include "base/stats.h"

static const struct {
    const char *name, *text;
} rows[COUNTER_COUNT] = {
#define COUNTER(name, text) [COUNTER_##name] = { #name, text },
#include "base/counters.def"
#undef COUNTER
};

const char *counter_name(enum counter counter) { return rows[counter].name; }
const char *counter_text(enum counter counter) { return rows[counter].text; }
