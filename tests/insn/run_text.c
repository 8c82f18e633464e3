/*
 * The text form of a run, in which cases that once failed are kept (cases/). A line is a name and a value: the code and the state in
 * hexadecimal, bytes in memory order; what is not there is zero or the default. Lines that begin with # say what it is.
 */
#include "program.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

enum { LINE_MAX_ = 2 * CODE_BYTES_MAX + 64 };

static void write_bytes(FILE *out, const char *name, unsigned index, const void *bytes, size_t size)
{
    const uint8_t *b = bytes;
    fprintf(out, "%s%u ", name, index);
    for (size_t i = 0; i < size; i++)
        fprintf(out, "%02x", b[i]);
    fprintf(out, "\n");
}

static bool is_zero(const void *bytes, size_t size)
{
    const uint8_t *b = bytes;
    for (size_t i = 0; i < size; i++)
        if (b[i])
            return false;
    return true;
}

void write_run(FILE *out, const struct run *run)
{
    const struct cpu_image *start = &run->start;
    fprintf(out, "data %#lx\nrip %#lx\nrflags %#lx\n", run->data_seed, start->rip, start->rflags);
    if (run->engines_only)
        fprintf(out, "engines 1\n");
    write_bytes(out, "code", 0, run->code, run->code_length);
    for (unsigned i = 0; i < run->resume_count; i++)
        fprintf(out, "resume%u %#x\n", i, run->resume[i]);
    for (unsigned i = 0; i < run->table_count; i++)
        fprintf(out, "table%u %#lx\n", i, run->table[i]);
    for (unsigned i = 0; i < 16; i++)
        if (start->gpr[i])
            fprintf(out, "gpr%u %#lx\n", i, start->gpr[i]);
    write_bytes(out, "fxsave", 0, start->fxsave, 160);
    for (unsigned i = 0; i < 32; i++)
        if (!is_zero(start->zmm[i], 64))
            write_bytes(out, "zmm", i, start->zmm[i], 64);
    for (unsigned i = 0; i < 8; i++)
        if (start->k[i])
            fprintf(out, "k%u %#lx\n", i, start->k[i]);
}

/* The bytes read, at most `size`. */
static unsigned read_bytes(const char *text, uint8_t *bytes, size_t size)
{
    unsigned count = 0, value;
    for (; count < size && sscanf(text, "%2x", &value) == 1; text += 2)
        bytes[count++] = (uint8_t)value;
    return count;
}

static bool read_line(struct run *run, const char *line)
{
    char name[16], value[LINE_MAX_];
    unsigned index = 0;
    if (sscanf(line, "%15[a-z]", name) != 1)
        return false;
    const char *rest = line + strlen(name);
    int fields = *rest == ' ' ? sscanf(rest, " %3100s", value) : sscanf(rest, "%u %3100s", &index, value) - 1;
    if (fields != 1)
        return false;
    uint64_t number = strtoull(value, NULL, 0);
    struct cpu_image *start = &run->start;
    if (!strcmp(name, "data"))
        run->data_seed = number;
    else if (!strcmp(name, "rip"))
        start->rip = number;
    else if (!strcmp(name, "rflags"))
        start->rflags = number;
    else if (!strcmp(name, "engines"))
        run->engines_only = number;
    else if (!strcmp(name, "code"))
        run->code_length = read_bytes(value, run->code, CODE_BYTES_MAX);
    else if (!strcmp(name, "resume") && index < RESUME_MAX)
        run->resume[index] = (uint16_t)number, run->resume_count = index + 1;
    else if (!strcmp(name, "table") && index < TABLE_MAX)
        run->table[index] = number, run->table_count = index + 1;
    else if (!strcmp(name, "gpr") && index < 16)
        start->gpr[index] = number;
    else if (!strcmp(name, "fxsave"))
        read_bytes(value, start->fxsave, 160);
    else if (!strcmp(name, "zmm") && index < 32)
        read_bytes(value, start->zmm[index], 64);
    else if (!strcmp(name, "k") && index < 8)
        start->k[index] = number;
    else
        return false;
    return true;
}

bool read_run(const char *path, struct run *run)
{
    FILE *in = fopen(path, "r");
    char line[LINE_MAX_];
    bool ok = in;
    memset(run, 0, sizeof(*run));
    run->mode = CODE_64;
    while (ok && fgets(line, sizeof(line), in))
        ok = line[0] == '#' || line[0] == '\n' || read_line(run, line);
    ok = ok && run->code_length && run->start.rip >= CODE_BASE && run->start.rip + run->code_length <= CODE_BASE + CODE_SIZE;
    if (!ok)
        fprintf(stderr, "%s: cannot be read as a case\n", path);
    if (in)
        fclose(in);
    return ok;
}
