"""X-Wing (draft-connolly-cfrg-xwing-kem) for the reference reader: ML-KEM-768 from FIPS 203, X25519 from `cryptography`.

Written from the texts, for vectors and tests alone: slow, and not in constant time.
"""
import hashlib
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

LABEL = bytes.fromhex("5c2e2f2f5e5c")
Q, N, K, ETA, DU, DV = 3329, 256, 3, 2, 10, 4
DK_M, PK_M, CT_M = 2400, 1184, 1088
PRIVATE, PUBLIC, CIPHERTEXT = DK_M + 32, PK_M + 32, CT_M + 32


def _reversed(i):
    return int(f"{i:07b}"[::-1], 2)


ZETAS = [pow(17, _reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _reversed(i) + 1, Q) for i in range(128)]


# ---------------------------------------------------------------- FIPS 203, sections 4.2 and 4.3

def _bits(raw):
    return [byte >> i & 1 for byte in raw for i in range(8)]


def _encode(poly, d):
    number = sum(value << i * d for i, value in enumerate(poly))
    return number.to_bytes(32 * d, "little")


def _decode(raw, d):
    number, mask = int.from_bytes(raw, "little"), (1 << d) - 1
    return [number >> i * d & mask for i in range(N)]


def _compress(poly, d):
    return [((value << d) + Q // 2) // Q % (1 << d) for value in poly]


def _decompress(poly, d):
    return [(value * Q + (1 << d - 1)) >> d for value in poly]


def _sample_ntt(seed):
    stream, poly, at = hashlib.shake_128(seed).digest(3 * N * 4), [], 0
    while len(poly) < N:
        a, b, c = stream[at:at + 3]
        poly += [d for d in (a + 256 * (b % 16), b // 16 + 16 * c) if d < Q]
        at += 3
    return poly[:N]


def _sample_cbd(seed, number):
    bits = _bits(hashlib.shake_256(seed + bytes([number])).digest(64 * ETA))
    pair = [sum(bits[i:i + ETA]) for i in range(0, len(bits), ETA)]
    return [(pair[2 * i] - pair[2 * i + 1]) % Q for i in range(N)]


def _ntt(poly):
    f, i, length = list(poly), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = ZETAS[i] * f[j + length] % Q
                f[j + length], f[j] = (f[j] - t) % Q, (f[j] + t) % Q
            i += 1
        length //= 2
    return f


def _inverse_ntt(poly):
    f, i, length = list(poly), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, ZETAS[i] * (f[j + length] - t) % Q
            i -= 1
        length *= 2
    return [value * 3303 % Q for value in f]


def _multiply(f, g):
    out = []
    for i in range(128):
        (a0, a1), (b0, b1) = f[2 * i:2 * i + 2], g[2 * i:2 * i + 2]
        out += [(a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q]
    return out


def _add(*polys):
    return [sum(values) % Q for values in zip(*polys)]


def _dot(f, g):
    return _add(*map(_multiply, f, g))


def _matrix(rho):
    return [[_sample_ntt(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


# ---------------------------------------------------------------- FIPS 203, sections 5 and 6

def _pke_encrypt(ek, message, coins):
    t, a = [_decode(ek[384 * i:384 * (i + 1)], 12) for i in range(K)], _matrix(ek[384 * K:])
    y = [_ntt(_sample_cbd(coins, i)) for i in range(K)]
    e1, e2 = [_sample_cbd(coins, K + i) for i in range(K)], _sample_cbd(coins, 2 * K)
    u = [_add(_inverse_ntt(_dot([a[j][i] for j in range(K)], y)), e1[i]) for i in range(K)]
    v = _add(_inverse_ntt(_dot(t, y)), e2, _decompress(_decode(message, 1), 1))
    return b"".join(_encode(_compress(poly, DU), DU) for poly in u) + _encode(_compress(v, DV), DV)


def _pke_decrypt(dk, c):
    u = [_decompress(_decode(c[320 * i:320 * (i + 1)], DU), DU) for i in range(K)]
    v, s = _decompress(_decode(c[320 * K:], DV), DV), [_decode(dk[384 * i:384 * (i + 1)], 12) for i in range(K)]
    w = _inverse_ntt(_dot(s, [_ntt(poly) for poly in u]))
    return _encode(_compress([(a - b) % Q for a, b in zip(v, w)], 1), 1)


def _g(text):
    digest = hashlib.sha3_512(text).digest()
    return digest[:32], digest[32:]


def mlkem_key(d, z):
    """Returns (ek, dk) of ML-KEM-768."""
    rho, sigma = _g(d + bytes([K]))
    a, s = _matrix(rho), [_ntt(_sample_cbd(sigma, i)) for i in range(K)]
    e = [_ntt(_sample_cbd(sigma, K + i)) for i in range(K)]
    ek = b"".join(_encode(_add(_dot(a[i], s), e[i]), 12) for i in range(K)) + rho
    return ek, b"".join(_encode(poly, 12) for poly in s) + ek + hashlib.sha3_256(ek).digest() + z


def mlkem_encapsulate(ek, m):
    key, coins = _g(m + hashlib.sha3_256(ek).digest())
    return key, _pke_encrypt(ek, m, coins)


def mlkem_decapsulate(dk, c):
    ek, digest, z = dk[384 * K:768 * K + 32], dk[768 * K + 32:768 * K + 64], dk[768 * K + 64:]
    m = _pke_decrypt(dk[:384 * K], c)
    key, coins = _g(m + digest)
    return key if _pke_encrypt(ek, m, coins) == c else hashlib.shake_256(z + c).digest(32)


# ---------------------------------------------------------------- X-Wing

def _x25519(secret, public):
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def _x25519_public(secret):
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _combine(ss_m, ss_x, ct_x, pk_x):
    return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + LABEL).digest()


def expand(seed):
    """The private key, as section 11.11 of docs/FORMAT.md has it, of an X-Wing seed."""
    expanded = hashlib.shake_256(seed).digest(96)
    return mlkem_key(expanded[:32], expanded[32:64])[1] + expanded[64:]


def public_of(private):
    return private[384 * K:768 * K + 32] + _x25519_public(private[DK_M:])


def encapsulate(public, eseed):
    """Derandomised, for vectors."""
    ss_m, ct_m = mlkem_encapsulate(public[:PK_M], eseed[:32])
    ct_x, pk_x = _x25519_public(eseed[32:]), public[PK_M:]
    return _combine(ss_m, _x25519(eseed[32:], pk_x), ct_x, pk_x), ct_m + ct_x


def decapsulate(private, ciphertext):
    """Raises ValueError for an X25519 share that comes to nothing."""
    ct_m, ct_x, secret = ciphertext[:CT_M], ciphertext[CT_M:], private[DK_M:]
    return _combine(mlkem_decapsulate(private[:DK_M], ct_m), _x25519(secret, ct_x), ct_x, _x25519_public(secret))
