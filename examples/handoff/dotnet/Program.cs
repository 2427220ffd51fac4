// A website that greets who came by a link in its mail: dotnet run -- PORT ISSUER AUDIENCE

using System;
using System.Collections.Concurrent;
using System.Linq;
using System.Net;
using System.Security.Cryptography;
using System.Text;
using System.Threading.Tasks;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.WebUtilities;
using Microsoft.Extensions.Hosting;

namespace Mailtap.Handoff
{
    public sealed class Website
    {
        private readonly ConcurrentDictionary<string, Visitor> _sessions = new ConcurrentDictionary<string, Visitor>();
        private readonly HandoffVerifier _verifier;

        private Website(HandoffVerifier verifier) => _verifier = verifier;

        public static void Main(string[] args)
        {
            var website = new Website(new HandoffVerifier(args[1], args[2]));
            Host.CreateDefaultBuilder()
                .ConfigureWebHostDefaults(web => web
                    .ConfigureKestrel(options => options.Listen(IPAddress.Loopback, int.Parse(args[0])))
                    .Configure(app =>
                    {
                        app.Use(website.HandOffAsync);
                        app.Run(website.PageAsync);
                    }))
                .Build()
                .Run();
        }

        private async Task HandOffAsync(HttpContext context, Func<Task> next)
        {
            var (request, response) = (context.Request, context.Response);
            // Not by request.Query, which takes MT for mt and would write the other parameters anew.
            var pairs = (request.QueryString.Value ?? "").TrimStart('?').Split('&');
            var query = pairs.ToLookup(pair => pair.StartsWith("mt=", StringComparison.Ordinal));
            var token = query[true].FirstOrDefault();
            if (token == null)
            {
                await next();
                return;
            }
            if (await _verifier.VerifyAsync(token.Substring("mt=".Length)) is { } visitor)
            {
                var bytes = new byte[16];
                RandomNumberGenerator.Fill(bytes);
                var id = WebEncoders.Base64UrlEncode(bytes);
                _sessions[id] = visitor;
                var options = new CookieOptions { Secure = true, HttpOnly = true, SameSite = SameSiteMode.Lax };
                response.Cookies.Append("session", id, options);
            }
            // Known or not, the token leaves the address bar, the history and the Referer.
            var path = (request.PathBase + request.Path).ToUriComponent().TrimStart('/');    // two slashes: another host
            var rest = string.Join('&', query[false]);
            response.StatusCode = StatusCodes.Status303SeeOther;
            response.Headers["Location"] = $"/{path}{(rest == "" ? "" : "?")}{rest}";
            response.Headers["Cache-Control"] = "no-store";
            response.Headers["Referrer-Policy"] = "no-referrer";
        }

        private Task PageAsync(HttpContext context)
        {
            var known = _sessions.TryGetValue(context.Request.Cookies["session"] ?? "", out var visitor);
            var text = known ? $"recipient {visitor!.Recipient}\n" : "nobody we know\n";
            context.Response.ContentType = "text/plain; charset=utf-8";
            context.Response.ContentLength = Encoding.UTF8.GetByteCount(text);
            return context.Response.WriteAsync(text);
        }
    }
}
