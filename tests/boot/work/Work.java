import java.math.BigInteger;
import java.security.MessageDigest;
import java.util.*;
import java.util.stream.*;

/** Hot loops, objects, collections, threads and big numbers: what a virtual machine compiles while it runs. */
public class Work {
    interface Shape { double area(); }
    record Square(double side) implements Shape { public double area() { return side * side; } }
    record Circle(double radius) implements Shape { public double area() { return Math.PI * radius * radius; } }

    static int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

    public static void main(String[] arguments) throws Exception {
        System.out.println(fibonacci(27));
        double area = 0;
        for (int i = 0; i < 1_000_000; i++)
            area += (i % 3 == 0 ? new Square(i % 10) : new Circle(i % 7)).area();
        System.out.println(area);
        Map<String, Integer> words = new TreeMap<>();
        for (int i = 0; i < 100_000; i++)
            words.merge("w" + i * 7919L % 1009, 1, Integer::sum);
        System.out.println(words.size() + " " + words.hashCode());
        System.out.println(IntStream.range(0, 200_000).parallel().mapToLong(i -> (long) i * i % 1013).sum());
        System.out.println(BigInteger.TWO.pow(4001).mod(BigInteger.valueOf(1_000_000_007)) + " " + BigInteger.valueOf(3).pow(3000).hashCode());
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        for (int i = 0; i < 2000; i++)
            digest.update(Integer.toString(i).getBytes());
        System.out.println(new BigInteger(1, digest.digest()).toString(16));
        List<Thread> threads = new ArrayList<>();
        long[] sums = new long[4];
        for (int t = 0; t < 4; t++) {
            final int slot = t;
            threads.add(new Thread(() -> { for (int i = 0; i < 300_000; i++) sums[slot] += i ^ slot; }));
            threads.get(t).start();
        }
        for (Thread thread : threads)
            thread.join();
        System.out.println(Arrays.toString(sums));
        try {
            Object nothing = arguments.length > 9 ? "" : null;
            System.out.println(nothing.hashCode());
        } catch (NullPointerException e) {
            System.out.println("a null pointer, caught");
        }
    }
}
