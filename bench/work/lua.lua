-- A sieve, strings and tables, closures: for a tracing compiler. lua.lua [TIMES]: how much of it.
local times = tonumber(arg[1] or 1)

local function sieve(n)
    local composite, count = {}, 0
    for i = 2, n do
        if not composite[i] then
            count = count + 1
            for j = i * i, n, i do composite[j] = true end
        end
    end
    return count
end

local function tree(depth) return depth == 0 and {} or { tree(depth - 1), tree(depth - 1) } end
local function size(node) return node[1] and 1 + size(node[1]) + size(node[2]) or 1 end

local parts = {}
for i = 1, 60000 * times do parts[#parts + 1] = ("%d:%x"):format(i, i * 31) end
local text, digits = table.concat(parts), 0
for number in text:gmatch("%d+") do digits = digits + #number end
local nodes = 0
for _ = 1, times do nodes = nodes + size(tree(15)) end
print(sieve(1000000 * times), nodes, #text, digits)
