// Verifies mailtap's hand-off. .NET 8 or later, and the package BouncyCastle.Cryptography (.NET 8 has no Ed25519).
//
// var verifier = new HandoffVerifier(http, "https://t.example.org", "www.example.org");
// Visitor? visitor = await verifier.VerifyAsync(token);

using System.Text;
using System.Text.Json;
using Org.BouncyCastle.Crypto.Parameters;
using Org.BouncyCastle.Crypto.Signers;

namespace Mailtap.Handoff;

public sealed record Visitor(string Recipient, string? Campaign, int Link);

/// <summary>Says once, and only once, true for each jti.</summary>
public interface ISpent
{
    ValueTask<bool> SpendAsync(string jti, long untilSeconds);
}

/// <summary>For a single process. Where several serve the site, share a store, like Redis: SET jti 1 NX EXAT until.</summary>
public sealed class SpentInMemory : ISpent
{
    private const int Most = 100_000;
    private readonly Dictionary<string, long> _spent = new();
    private readonly Queue<string> _order = new();
    private readonly object _lock = new();

    public ValueTask<bool> SpendAsync(string jti, long untilSeconds)
    {
        lock (_lock)
        {
            var now = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
            while (_order.TryPeek(out var oldest) && (_spent[oldest] <= now || _spent.Count >= Most))
            {
                _spent.Remove(_order.Dequeue());
            }
            if (!_spent.TryAdd(jti, untilSeconds)) return ValueTask.FromResult(false);
            _order.Enqueue(jti);
            return ValueTask.FromResult(true);
        }
    }
}

public sealed class HandoffVerifier(HttpClient http, string issuer, string audience, ISpent? spent = null)
{
    private static readonly TimeSpan KeysFresh = TimeSpan.FromMinutes(5);      // as the answer's max-age says
    private static readonly TimeSpan KeysAgain = TimeSpan.FromSeconds(10);     // for an unknown key, but not at every request
    private const long LongestLifeSeconds = 600;
    private const long ClockSkewSeconds = 5;

    private readonly ISpent _spent = spent ?? new SpentInMemory();
    private readonly SemaphoreSlim _fetching = new(1, 1);
    private volatile IReadOnlyDictionary<string, Ed25519PublicKeyParameters> _keys =
        new Dictionary<string, Ed25519PublicKeyParameters>();
    private DateTimeOffset _fetched = DateTimeOffset.MinValue;

    public async Task<Visitor?> VerifyAsync(string? token)
    {
        if (token is null || token.Length > 2_000) return null;
        var parts = token.Split('.');
        if (parts.Length != 3) return null;
        if (Decode(parts[0]) is not { } headerBytes || Decode(parts[1]) is not { } claimBytes) return null;
        if (Decode(parts[2]) is not { Length: 64 } signature) return null;
        try
        {
            using var header = JsonDocument.Parse(headerBytes);
            // The algorithm is ours to choose, never the token's.
            if (Text(header.RootElement, "alg") != "EdDSA" || Text(header.RootElement, "kid") is not { } kid) return null;
            if (await KeyAsync(kid) is not { } key) return null;
            var signed = Encoding.ASCII.GetBytes($"{parts[0]}.{parts[1]}");
            var verifier = new Ed25519Signer();
            verifier.Init(false, key);
            verifier.BlockUpdate(signed, 0, signed.Length);
            if (!verifier.VerifySignature(signature)) return null;

            using var document = JsonDocument.Parse(claimBytes);
            var claims = document.RootElement;
            if (Text(claims, "iss") != issuer || Text(claims, "aud") != audience) return null;
            var now = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
            if (Number(claims, "exp") is not { } ends || Number(claims, "iat") is not { } issued) return null;
            if (ends <= now || ends > now + LongestLifeSeconds || issued > now + ClockSkewSeconds) return null;
            if (Text(claims, "sub") is not { } recipient || Text(claims, "jti") is not { } jti) return null;
            if (!await _spent.SpendAsync(jti, ends)) return null;
            return new Visitor(recipient, Text(claims, "campaign"), (int)(Number(claims, "link") ?? 0));
        }
        catch (JsonException)
        {
            return null;
        }
    }

    private async Task<Ed25519PublicKeyParameters?> KeyAsync(string kid)
    {
        await _fetching.WaitAsync();
        try
        {
            var age = DateTimeOffset.UtcNow - _fetched;
            if (age > KeysFresh || (!_keys.ContainsKey(kid) && age > KeysAgain)) await FetchAsync();
        }
        finally
        {
            _fetching.Release();
        }
        return _keys.GetValueOrDefault(kid);
    }

    private async Task FetchAsync()
    {
        _fetched = DateTimeOffset.UtcNow;
        try
        {
            using var timeout = new CancellationTokenSource(TimeSpan.FromSeconds(2));
            var body = await http.GetByteArrayAsync($"{issuer}/.well-known/jwks.json", timeout.Token);
            using var set = JsonDocument.Parse(body);
            var keys = new Dictionary<string, Ed25519PublicKeyParameters>();
            foreach (var jwk in set.RootElement.GetProperty("keys").EnumerateArray())
            {
                if (Text(jwk, "kty") != "OKP" || Text(jwk, "crv") != "Ed25519" || Text(jwk, "kid") is not { } kid) continue;
                if (Decode(Text(jwk, "x") ?? "") is { Length: 32 } x) keys[kid] = new Ed25519PublicKeyParameters(x);
            }
            _keys = keys;
        }
        catch (Exception error) when (error is HttpRequestException or JsonException or OperationCanceledException
            or KeyNotFoundException or InvalidOperationException)
        {
            // The keys known so far stay; a visitor who can't be verified is a visitor like any other.
        }
    }

    private static string? Text(JsonElement element, string name) =>
        element.ValueKind == JsonValueKind.Object && element.TryGetProperty(name, out var value)
            && value.ValueKind == JsonValueKind.String ? value.GetString() : null;

    private static long? Number(JsonElement element, string name) =>
        element.ValueKind == JsonValueKind.Object && element.TryGetProperty(name, out var value)
            && value.ValueKind == JsonValueKind.Number && value.TryGetInt64(out var number) ? number : null;

    /// <summary>base64url in its one canonical form, or null.</summary>
    private static byte[]? Decode(string part)
    {
        foreach (var character in part)
        {
            if (!char.IsAsciiLetterOrDigit(character) && character is not ('-' or '_')) return null;
        }
        if (part.Length == 0 || part.Length % 4 == 1) return null;
        var plain = part.Replace('-', '+').Replace('_', '/').PadRight((part.Length + 3) / 4 * 4, '=');
        var bytes = new byte[plain.Length];
        if (!Convert.TryFromBase64String(plain, bytes, out var length)) return null;
        var value = bytes[..length];
        var again = Convert.ToBase64String(value).TrimEnd('=').Replace('+', '-').Replace('/', '_');
        return again == part ? value : null;
    }
}
