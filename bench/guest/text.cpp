// Integer code over bytes and records: a digest, a compressor, and a mix of strings and structs.
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "suite.hpp"

namespace bench {
namespace {

// floor(2^32 * frac(n^(1/root))): FIPS 180-4 derives SHA-256's constants so; 64 typed ones could
// be wrong. Bisection in integers: x^root <= n * 2^(36*root) with x up to 2^40 would overflow, so
// it goes bit by bit over 32 fraction bits in extended precision, exact for these few primes.
std::uint32_t root_fraction(unsigned n, int root) {
  long double low = 0;
  for (long double step = 32; step >= 0x1p-32L; step /= 2) {
    const long double next = low + step;
    if ((root == 2 ? next * next : next * next * next) <= static_cast<long double>(n)) low = next;
  }
  return static_cast<std::uint32_t>((low - static_cast<long double>(static_cast<int>(low))) *
                                    0x1p32L);
}

struct Sha256 {
  std::array<std::uint32_t, 64> k;
  std::array<std::uint32_t, 8> h;

  Sha256() {
    std::size_t found = 0;
    for (unsigned n = 2; found < k.size(); ++n) {
      bool prime = true;
      for (unsigned d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
      if (!prime) continue;
      if (found < h.size()) h[found] = root_fraction(n, 2);
      k[found++] = root_fraction(n, 3);
    }
  }
  void block(const unsigned char* data);
};

void Sha256::block(const unsigned char* data) {
  std::array<std::uint32_t, 64> w;
  for (std::size_t i = 0; i < 16; ++i) {
    std::uint32_t word;
    std::memcpy(&word, data + 4 * i, 4);
    w[i] = __builtin_bswap32(word);
  }
  for (std::size_t i = 16; i < 64; ++i) {
    const std::uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  auto s = h;
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint32_t e = s[4], a = s[0];
    const std::uint32_t t1 = s[7] + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                             ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
    const std::uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
                             ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    s = {t1 + t2, a, s[1], s[2], s[3] + t1, e, s[5], s[6]};
  }
  for (std::size_t i = 0; i < 8; ++i) h[i] += s[i];
}

std::uint64_t sha256(const Scale& scale) {
  Sha256 digest;
  std::array<unsigned char, 4096> data;
  Random random(5);
  for (auto& byte : data) byte = static_cast<unsigned char>(random.next());
  for (std::size_t round = scale.rounds(6000); round > 0; --round) {
    for (std::size_t at = 0; at < data.size(); at += 64) digest.block(data.data() + at);
  }
  return std::uint64_t{digest.h[0]} << 32 | digest.h[7];
}

// Words of a small vocabulary: text that compresses about as real text does.
std::vector<unsigned char> make_text(std::size_t size) {
  Random random(6);
  std::vector<std::string> words(400);
  for (auto& word : words) {
    for (std::size_t length = 2 + random.below(8); length > 0; --length) {
      word += static_cast<char>('a' + random.below(26));
    }
    word += ' ';
  }
  std::vector<unsigned char> text;
  while (text.size() < size) {
    const std::string& word = words[random.below(20) * random.below(20)];
    text.insert(text.end(), word.begin(), word.end());
  }
  text.resize(size);
  return text;
}

constexpr std::size_t least_match = 4, longest_match = 255;

std::size_t match_length(const std::vector<unsigned char>& text, std::size_t a, std::size_t b) {
  std::size_t length = 0;
  while (b + length < text.size() && length < longest_match &&
         text[a + length] == text[b + length]) {
    ++length;
  }
  return length;
}

// Greedy LZ77 over a hash of the last place of each four bytes: 0, byte or length, distance.
std::vector<unsigned char> compress(const std::vector<unsigned char>& text) {
  std::vector<std::uint32_t> last(1 << 14);
  std::vector<unsigned char> out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 0, from = 0;
    if (at + least_match <= text.size()) {
      std::uint32_t four;
      std::memcpy(&four, &text[at], 4);
      auto& entry = last[(four * 2654435761U) >> 18];
      from = entry;
      entry = static_cast<std::uint32_t>(at);
      if (from < at && at - from < 65536) length = match_length(text, from, at);
    }
    if (length < least_match) {
      out.push_back(0);
      out.push_back(text[at++]);
      continue;
    }
    out.push_back(static_cast<unsigned char>(length));
    out.push_back(static_cast<unsigned char>(at - from));
    out.push_back(static_cast<unsigned char>((at - from) >> 8));
    at += length;
  }
  return out;
}

std::vector<unsigned char> decompress(const std::vector<unsigned char>& packed) {
  std::vector<unsigned char> text;
  for (std::size_t at = 0; at < packed.size();) {
    const std::size_t length = packed[at];
    if (length == 0) {
      text.push_back(packed[at + 1]);
      at += 2;
      continue;
    }
    const std::size_t distance = packed[at + 1] | std::size_t{packed[at + 2]} << 8;
    for (std::size_t i = 0; i < length; ++i) text.push_back(text[text.size() - distance]);
    at += 3;
  }
  return text;
}

std::uint64_t lz(const Scale& scale) {
  const auto text = make_text(256 << 10);
  std::uint64_t checksum = 0;
  for (std::size_t round = scale.rounds(80); round > 0; --round) {
    const auto packed = compress(text);
    checksum = mix(checksum, std::uint64_t{packed.size()});
    checksum = mix(checksum, std::uint64_t{decompress(packed) == text});
  }
  return checksum;
}

struct Record {
  Record* next;
  int kind;
  int values[6];
  char name[32];
};

__attribute__((noinline)) int rate(const Record& record, int bias) {
  switch (record.kind) {
    case 0:
      return record.values[1] / (1 + (bias & 7));
    case 1:
      return record.values[2] - bias;
    case 2:
      return std::strlen(record.name) > 16 ? bias : -bias;
    default:
      return record.values[record.kind % 6] * bias;
  }
}

__attribute__((noinline)) void update(Record* record, const Record& model, int step) {
  const Record* next = record->next;
  *record = model;
  record->next = const_cast<Record*>(next);
  record->kind = (model.kind + step) & 3;
  record->name[step & 15] = static_cast<char>('a' + (step & 7));
  if (std::strcmp(record->name, model.name) > 0) record->values[step % 6] += step;
}

// Records copied, names compared, small calls: what programs of the Dhrystone kind do.
std::uint64_t records(const Scale& scale) {
  std::array<Record, 64> ring{};
  for (std::size_t i = 0; i < ring.size(); ++i) {
    ring[i].next = &ring[(i + 1) % ring.size()];
    ring[i].kind = static_cast<int>(i & 3);
    std::strcpy(ring[i].name, "a name of some length");
    for (int v = 0; v < 6; ++v) ring[i].values[v] = static_cast<int>(i) * v;
  }
  unsigned sum = 0;
  Record* at = ring.data();
  const std::size_t rounds = scale.rounds(5'000'000);
  for (std::size_t round = 0; round < rounds; ++round, at = at->next) {
    const int step = static_cast<int>(round & 1023);
    update(at->next, *at, step);
    sum = sum * 31 + static_cast<unsigned>(rate(*at, step));
  }
  return sum;
}

constexpr Test tests[] = {
    {"sha256", "integer", sha256}, {"lz", "integer", lz}, {"records", "integer", records}};

}  // namespace

std::span<const Test> text_tests() { return tests; }

}  // namespace bench
