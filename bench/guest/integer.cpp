// Integer code of the kinds that programs spend their time in: tables, sorting, branches,
// multiplications, calls and dispatch.
#include <array>
#include <cstdlib>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

std::uint64_t crc(const Scale& scale) {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xedb88320U : 0);
    table[byte] = value;
  }
  std::vector<unsigned char> data(64 << 10);
  Random random(1);
  for (auto& byte : data) byte = static_cast<unsigned char>(random.next());
  std::uint32_t value = ~0U;
  for (std::size_t round = scale.rounds(600); round > 0; --round) {
    for (const unsigned char byte : data) value = (value >> 8) ^ table[(value ^ byte) & 255];
  }
  return value;
}

int compare_numbers(const void* left, const void* right) {
  const auto a = *static_cast<const std::uint32_t*>(left);
  const auto b = *static_cast<const std::uint32_t*>(right);
  return (a > b) - (a < b);
}

// The C library's: an indirect call per comparison.
std::uint64_t quicksort(const Scale& scale) {
  std::vector<std::uint32_t> numbers(20000);
  Random random(2);
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(45); round > 0; --round) {
    for (auto& number : numbers) number = static_cast<std::uint32_t>(random.next());
    std::qsort(numbers.data(), numbers.size(), sizeof numbers[0], compare_numbers);
    for (std::size_t i = 0; i < numbers.size(); i += 97)
      checksum = mix(checksum, std::uint64_t{numbers[i]});
  }
  return checksum;
}

std::uint64_t sieve(const Scale& scale) {
  constexpr std::size_t limit = 1 << 20;
  std::vector<unsigned char> composite(limit);
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(45); round > 0; --round) {
    std::fill(composite.begin(), composite.end(), 0);
    std::uint64_t primes = 0;
    for (std::size_t i = 2; i < limit; ++i) {
      if (composite[i]) continue;
      ++primes;
      for (std::size_t multiple = i * i; multiple < limit; multiple += i) composite[multiple] = 1;
    }
    checksum = mix(checksum, primes);
  }
  return checksum;
}

// Open addressing with linear probing: lookups, insertions and misses.
class NumberTable {
 public:
  explicit NumberTable(std::size_t slots) : keys_(slots), counts_(slots) {}
  std::uint64_t& count(std::uint64_t key) {
    std::size_t slot = (key * 0x9e3779b97f4a7c15U) >> 32 & (keys_.size() - 1);
    while (keys_[slot] != 0 && keys_[slot] != key) slot = (slot + 1) & (keys_.size() - 1);
    keys_[slot] = key;
    return counts_[slot];
  }

 private:
  std::vector<std::uint64_t> keys_, counts_;
};

std::uint64_t hash_table(const Scale& scale) {
  NumberTable table(1 << 17);
  Random random(3);
  std::uint64_t checksum = 0;
  for (std::size_t i = scale.rounds(7'000'000); i > 0; --i) {
    checksum += ++table.count(1 + random.below(60000)) * (i & 15);
  }
  return checksum;
}

std::uint64_t matrix_int(const Scale& scale) {
  constexpr std::size_t n = 96;
  static std::array<std::array<std::int32_t, n>, n> a, b, c;
  Random random(4);
  for (std::size_t i = 0; i < n * n; ++i) {
    a[i / n][i % n] = static_cast<std::int32_t>(random.below(1000));
    b[i / n][i % n] = static_cast<std::int32_t>(random.below(1000));
  }
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(400); round > 0; --round) {
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        std::int32_t sum = 0;
        for (std::size_t k = 0; k < n; ++k) sum += a[i][k] * b[k][j];
        c[i][j] = sum;
      }
    }
    checksum = mix(checksum, static_cast<std::uint64_t>(c[round % n][(round * 7) % n]));
    a[round % n][round % n] ^= 1;
  }
  return checksum;
}

enum class Op : std::uint8_t { load, add, shift, exclusive_or, odd_skip, triple, down, loop, end };

struct Code {
  Op op;
  std::uint8_t to, from;
  std::int16_t value;
};

// A register machine; what counts is one indirect jump per operation.
std::uint64_t interpret(const Code* code, std::uint64_t count) {
  std::array<std::uint64_t, 8> r{};
  r[0] = count;
  for (const Code* at = code;; ++at) {
    switch (at->op) {
      case Op::load:
        r[at->to] = static_cast<std::uint64_t>(at->value);
        break;
      case Op::add:
        r[at->to] += r[at->from];
        break;
      case Op::shift:
        r[at->to] = r[at->from] >> at->value;
        break;
      case Op::exclusive_or:
        r[at->to] ^= r[at->from];
        break;
      case Op::odd_skip:
        at += (r[at->from] & 1) != 0 ? at->value : 0;
        break;
      case Op::triple:
        r[at->to] = r[at->to] * 3 + 1;
        break;
      case Op::down:
        --r[at->to];
        break;
      case Op::loop:
        at += r[at->from] != 0 ? at->value : 0;
        break;
      case Op::end:
        return r[7];
    }
  }
}

std::uint64_t bytecode(const Scale& scale) {
  // Numbers of the form 3n+1 in turn, their sum and exclusive-or kept beside.
  static const Code program[] = {{Op::load, 1, 0, 27},        {Op::odd_skip, 0, 1, 2},
                                 {Op::shift, 1, 1, 1},        {Op::load, 2, 0, 5},
                                 {Op::triple, 1, 0, 0},       {Op::add, 7, 1, 0},
                                 {Op::exclusive_or, 7, 0, 0}, {Op::down, 0, 0, 0},
                                 {Op::loop, 0, 0, -8},        {Op::end, 0, 0, 0}};
  return interpret(program, scale.rounds(8'000'000));
}

__attribute__((noinline)) std::uint64_t fib(std::uint64_t n) {
  // The compiler would unroll the recursion into a loop of one of the two calls.
  opaque(n);
  return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

std::uint64_t recursion(const Scale& scale) {
  std::uint64_t sum = 0;
  for (std::size_t round = scale.rounds(4000); round > 0; --round) sum += fib(20 + round % 2);
  return sum;
}

constexpr Test tests[] = {{"crc", "integer", crc},           {"qsort", "integer", quicksort},
                          {"sieve", "integer", sieve},       {"hash", "integer", hash_table},
                          {"matrix", "integer", matrix_int}, {"bytecode", "integer", bytecode},
                          {"fib", "integer", recursion}};

}  // namespace

std::span<const Test> integer_tests() { return tests; }

}  // namespace bench
