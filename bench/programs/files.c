/* Files in memory: made, written, closed and removed. */
#include "unit.h"
#include <fcntl.h>
#include <unistd.h>

static uint64_t unit(void)
{
    static char data[8192];
    for (int i = 0; i < 200; i++) {
        char name[40];
        snprintf(name, sizeof(name), "file-%d", i);
        int file = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (file < 0 || write(file, data, sizeof(data)) != sizeof(data) || close(file) || unlink(name))
            give_up(name);
    }
    return 0;
}

int main(void) { return measure(unit); }
