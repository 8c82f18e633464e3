// Hot loops, closures, strings, typed arrays, big numbers and exceptions: what a just-in-time compiler is made for.
const crypto = require('crypto');

const fibonacci = n => n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
console.log(fibonacci(25));

const field = new Float64Array(1 << 16);
for (let round = 0; round < 20; round++)
    for (let i = 0; i < field.length; i++)
        field[i] = field[i] * 0.5 + Math.sin(i * round);
console.log(field.reduce((a, b) => a + b).toFixed(6));

const words = new Map();
for (let i = 0; i < 100000; i++) {
    const word = 'w' + i * 7919 % 1009;
    words.set(word, (words.get(word) || 0) + word.length);
}
console.log(crypto.createHash('sha256').update(JSON.stringify([...words].sort())).digest('hex'));
console.log((3n ** 3000n % 1000000007n).toString());
console.log('abc-123-def-456 '.repeat(2000).replace(/([a-z]+)-(\d+)/g, '$2$1').length);

let caught = 0;
for (let i = 0; i < 2000; i++) {
    try { if (i % 3) null.x; } catch (e) { caught++; }
}
console.log(caught);
const shapes = Array.from({ length: 30000 }, (_, i) => i % 2 ? { side: i } : { radius: i, name: 'c' + i });
console.log(shapes.map(s => s.side ? s.side * 2 : s.name.length).reduce((a, b) => a + b, 0));
setTimeout(() => console.log('later'), 10);
