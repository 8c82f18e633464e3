/* The C library's mathematical functions. */
#include "unit.h"
#include <math.h>

static uint64_t unit(void)
{
    double sum = 0;
    for (int i = 1; i <= 8000; i++) {
        double x = i * 0.001;
        sum += sin(x) * exp(-x) + log(x) + pow(x, 0.3) + atan2(x, 1 + sum * 1e-6) + cbrt(x) + tanh(x);
    }
    return bits_of(sum);
}

int main(void) { return measure(unit); }
