/* A product of two matrices of 160 x 160 doubles, in an order that a compiler can vectorize. */
#include "unit.h"

enum { N = 160 };

static double a[N][N], b[N][N], c[N][N];

static uint64_t unit(void)
{
    memset(c, 0, sizeof(c));
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++)
            for (int j = 0; j < N; j++)
                c[i][j] += a[i][k] * b[k][j];
    return bits_of(c[N / 3][N / 5]);
}

int main(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (i * 7 + j) % 13 / 3.0;
            b[i][j] = (i + j * 5) % 11 / 7.0;
        }
    return measure(unit);
}
