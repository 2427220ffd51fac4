// Verifies mailtap's hand-off. ASP.NET Core 3.1 or later, and libsodium, because .NET has no Ed25519.
//
// var verifier = new HandoffVerifier("https://t.example.org", "www.example.org");
// Visitor? visitor = await verifier.VerifyAsync(token);

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Net.Http;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Threading;
using System.Threading.Tasks;
using Microsoft.AspNetCore.WebUtilities;

namespace Mailtap.Handoff
{
    public sealed class Visitor
    {
        public Visitor(string recipient, string? campaign, int? link)
        {
            Recipient = recipient;
            Campaign = campaign;
            Link = link;
        }

        public string Recipient { get; }
        public string? Campaign { get; }
        public int? Link { get; }
    }

    /// <summary>Says once, and only once, true for each jti.</summary>
    public interface ISpent
    {
        ValueTask<bool> SpendAsync(string jti, long untilSeconds);
    }

    /// <summary>For a single process. Where several serve the site, share a store, like Redis: SET jti 1 NX EXAT until.</summary>
    public sealed class SpentInMemory : ISpent
    {
        private const int Most = 100_000;
        private readonly Dictionary<string, long> _spent = new Dictionary<string, long>();
        private readonly Queue<string> _order = new Queue<string>();

        public ValueTask<bool> SpendAsync(string jti, long untilSeconds)
        {
            lock (_order)
            {
                var now = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
                while (_order.TryPeek(out var oldest) && (_spent[oldest] <= now || _spent.Count >= Most))
                {
                    _spent.Remove(_order.Dequeue());
                }
                if (!_spent.TryAdd(jti, untilSeconds)) return new ValueTask<bool>(false);
                _order.Enqueue(jti);
                return new ValueTask<bool>(true);
            }
        }
    }

    /// <summary>One for the whole site: it keeps the keys and what is spent.</summary>
    public sealed class HandoffVerifier
    {
        private static readonly TimeSpan KeysFresh = TimeSpan.FromMinutes(5);    // as the answer's max-age says
        private static readonly TimeSpan KeysAgain = TimeSpan.FromSeconds(10);   // for an unknown key, but not at every request
        private const long LongestLifeSeconds = 600;    // nothing that claims to live longer is remembered, or believed
        private const long ClockSkewSeconds = 5;

        private readonly string _issuer;
        private readonly string _audience;
        private readonly ISpent _spent;
        private readonly HttpClient _http = new HttpClient(new HttpClientHandler { AllowAutoRedirect = false })
        {
            Timeout = TimeSpan.FromSeconds(2),
            MaxResponseContentBufferSize = 1_000_000,
        };
        private readonly SemaphoreSlim _fetching = new SemaphoreSlim(1, 1);
        private readonly Stopwatch _sinceFetched = new Stopwatch();
        private Dictionary<string, byte[]> _keys = new Dictionary<string, byte[]>();

        public HandoffVerifier(string issuer, string audience, ISpent? spent = null)
        {
            _issuer = issuer;
            _audience = audience;
            _spent = spent ?? new SpentInMemory();
            Sodium.Start();    // says at the site's start, not at its first visitor, that the library is missing
        }

        public async Task<Visitor?> VerifyAsync(string? token)
        {
            if (token == null || token.Length > 2_000) return null;
            var parts = token.Split('.');
            if (parts.Length != 3) return null;
            var header = Parse<Header>(Decode(parts[0]));
            // The algorithm is ours to choose, never the token's.
            if (header?.Alg != "EdDSA" || header.Kid == null) return null;
            var key = await KeyAsync(header.Kid);
            var signature = Decode(parts[2]);
            if (key == null || signature == null) return null;
            if (!Sodium.Verifies(signature, Encoding.ASCII.GetBytes($"{parts[0]}.{parts[1]}"), key)) return null;

            var claims = Parse<Claims>(Decode(parts[1]));
            if (claims == null || claims.Iss != _issuer || claims.Aud != _audience) return null;
            if (!(claims.Exp is { } ends) || !(claims.Iat is { } issued)) return null;
            var now = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
            if (ends <= now || ends > now + LongestLifeSeconds || issued > now + ClockSkewSeconds) return null;
            if (claims.Sub == null || claims.Jti == null) return null;
            if (!await _spent.SpendAsync(claims.Jti, ends)) return null;
            return new Visitor(claims.Sub, claims.Campaign, claims.Link);
        }

        private async Task<byte[]?> KeyAsync(string kid)
        {
            await _fetching.WaitAsync();
            try
            {
                var age = _sinceFetched.IsRunning ? _sinceFetched.Elapsed : TimeSpan.MaxValue;
                if (age > KeysFresh || (!_keys.ContainsKey(kid) && age > KeysAgain)) await FetchAsync();
                return _keys.TryGetValue(kid, out var key) ? key : null;
            }
            finally
            {
                _fetching.Release();
            }
        }

        private async Task FetchAsync()
        {
            _sinceFetched.Restart();
            try
            {
                using var answer = await _http.GetAsync($"{_issuer}/.well-known/jwks.json");
                if (!answer.IsSuccessStatusCode) return;
                var set = Parse<KeySet>(await answer.Content.ReadAsByteArrayAsync());
                if (set?.Keys == null) return;
                var keys = new Dictionary<string, byte[]>();
                foreach (var jwk in set.Keys)
                {
                    if (jwk?.Kty != "OKP" || jwk.Crv != "Ed25519" || jwk.Kid == null) continue;
                    if (Decode(jwk.X) is { } key) keys[jwk.Kid] = key;
                }
                _keys = keys;
            }
            catch (Exception error) when (error is HttpRequestException || error is OperationCanceledException)
            {
                // The keys known so far stay; a visitor who can't be verified is a visitor like any other.
            }
        }

        /// <summary>base64url in its one canonical form, or null.</summary>
        private static byte[]? Decode(string? part)
        {
            if (part == null) return null;
            try
            {
                var value = WebEncoders.Base64UrlDecode(part);
                return WebEncoders.Base64UrlEncode(value) == part ? value : null;
            }
            catch (FormatException)
            {
                return null;
            }
        }

        private static T? Parse<T>(byte[]? json) where T : class
        {
            if (json == null) return null;
            try
            {
                return JsonSerializer.Deserialize<T>(json, Lowercase);
            }
            catch (JsonException)
            {
                return null;
            }
        }

        private static readonly JsonSerializerOptions Lowercase =
            new JsonSerializerOptions { PropertyNamingPolicy = JsonNamingPolicy.CamelCase };

        private sealed class Header
        {
            public string? Alg { get; set; }
            public string? Kid { get; set; }
        }

        private sealed class Claims
        {
            public string? Iss { get; set; }
            public string? Aud { get; set; }
            public string? Sub { get; set; }
            public string? Jti { get; set; }
            public long? Iat { get; set; }
            public long? Exp { get; set; }
            public string? Campaign { get; set; }
            public int? Link { get; set; }
        }

        private sealed class KeySet
        {
            public List<Jwk?>? Keys { get; set; }
        }

        private sealed class Jwk
        {
            public string? Kty { get; set; }
            public string? Crv { get; set; }
            public string? Kid { get; set; }
            public string? X { get; set; }
        }
    }

    /// <summary>The one function of libsodium that is needed: Ed25519, which .NET has not.</summary>
    internal static class Sodium
    {
        private const string Library = "libsodium";
        private const int SignatureBytes = 64;
        private const int KeyBytes = 32;

        static Sodium()
        {
            NativeLibrary.SetDllImportResolver(typeof(Sodium).Assembly, Find);
            if (sodium_init() < 0) throw new InvalidOperationException("libsodium can't be initialized");
        }

        public static void Start() => RuntimeHelpers.RunClassConstructor(typeof(Sodium).TypeHandle);

        public static bool Verifies(byte[] signature, byte[] message, byte[] key) =>
            // libsodium is told no lengths of these two: it reads as many bytes as it expects.
            signature.Length == SignatureBytes && key.Length == KeyBytes
                && crypto_sign_verify_detached(signature, message, (ulong)message.Length, key) == 0;

        /// <summary>The NuGet package's libsodium, or else the system's, which has its version in the file's name.</summary>
        private static IntPtr Find(string name, Assembly assembly, DllImportSearchPath? path)
        {
            if (name != Library) return IntPtr.Zero;
            foreach (var file in new[] { name, "libsodium.so.26", "libsodium.so.23" })
            {
                if (NativeLibrary.TryLoad(file, assembly, path, out var handle)) return handle;
            }
            return IntPtr.Zero;
        }

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        private static extern int sodium_init();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        private static extern int crypto_sign_verify_detached(byte[] signature, byte[] message, ulong length, byte[] key);
    }
}
