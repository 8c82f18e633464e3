/* long double: arithmetic, square roots and the x87's own functions. */
#include "unit.h"
#include <math.h>

static uint64_t unit(void)
{
    long double sum = 0, x = 0.5L;
    for (int i = 1; i <= 100000; i++) {
        x = x * 0.999L + sqrtl(x + i) / (i + 3.0L);
        sum += x * x - x / 7;
    }
    for (int i = 1; i <= 2000; i++) {
        long double angle = i * 0.01L, sine, cosine;
        __asm__("fsincos" : "=t"(cosine), "=u"(sine) : "0"(angle));
        sum += sine * cosine;
    }
    return bits_of((double)sum);
}

int main(void) { return measure(unit); }
