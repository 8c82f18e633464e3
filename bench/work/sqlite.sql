-- Rows made, indexed, joined, grouped and changed, in memory.
CREATE TABLE a(id INTEGER PRIMARY KEY, k INTEGER, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
INSERT INTO a SELECT i, i * 7919 % 10007, 'name-' || (i * 31 % 4099) FROM n;
CREATE INDEX by_k ON a(k);
CREATE INDEX by_name ON a(name);
SELECT count(*), sum(x.id), max(y.name) FROM a x JOIN a y ON x.k = y.k AND x.id < y.id;
SELECT name, count(*) AS c, avg(k) FROM a GROUP BY name ORDER BY c DESC, name LIMIT 5;
UPDATE a SET k = k + 1, name = name || '!' WHERE id % 3 = 0;
DELETE FROM a WHERE name LIKE '%77%';
SELECT count(*), sum(k), sum(length(name)) FROM a;
