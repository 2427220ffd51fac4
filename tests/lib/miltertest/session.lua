-- A milter session as Postfix has it, played by OpenDKIM's miltertest against mailtap.
-- Needs -D socket=inet:PORT@HOST. Bodies are tiny: miltertest 1.6 crashes on reply packets of more than 1,024 bytes.

local conn

local function expect(condition, what)
  if not condition then error(what, 2) end
end

local function ok(status, what)
  expect(status == nil, what .. ": no connection")
end

-- Everything up to the end of the headers.
local function begin(id, sender)
  -- Postfix sends "i" from DATA on, but miltertest knows macros up to RCPT only.
  ok(mt.macro(conn, SMFIC_MAIL, "i", id, "{mail_addr}", sender), "macro")
  ok(mt.mailfrom(conn, "<" .. sender .. ">", "SIZE=100"), "MAIL")
  ok(mt.rcptto(conn, "<anna@example.net>"), "RCPT")
  ok(mt.header(conn, "From", sender), "From")
  ok(mt.header(conn, "To", "anna@example.net"), "To")
  ok(mt.header(conn, "Message-ID", "<" .. id .. "@shop.example>"), "Message-ID")
  ok(mt.header(conn, "X-Mailtap-Campaign", "spring-2027"), "X-Mailtap-Campaign")
  ok(mt.header(conn, "MIME-Version", "1.0"), "MIME-Version")
  ok(mt.header(conn, "Content-Type", "text/html; charset=us-ascii"), "Content-Type")
  ok(mt.eoh(conn), "end of headers")
end

local function finish(body)
  ok(mt.bodystring(conn, body), "body")
  ok(mt.eom(conn), "end of message")
  local reply = mt.getreply(conn)
  expect(reply == SMFIR_CONTINUE or reply == SMFIR_ACCEPT, "a final reply of accept or continue")
end

local function run()
  conn = mt.connect(socket, 40, 0.1)
  expect(conn ~= nil, "a connection to " .. socket)
  ok(mt.negotiate(conn, nil, nil, nil), "negotiation")
  for _, action in ipairs({ SMFIF_ADDHDRS, SMFIF_CHGHDRS, SMFIF_CHGBODY }) do
    expect(mt.test_action(conn, action), "the right to change headers and body")
  end
  -- What mailtap asked to be left out of, miltertest refuses to send.
  expect(not pcall(mt.conninfo, conn, "client.example.org", "192.0.2.1"), "no CONNECT: nobody needs it")
  expect(not pcall(mt.data, conn), "no DATA: nobody needs it")

  for round = 1, 2 do
    begin("4jYJlt4VZLz1SRr" .. round, "news@shop.example")
    expect(mt.getreply(conn) == SMFIR_CONTINUE, "the body of a message in scope asked for")
    finish('<p><a href="https://shop.example/spring">spring</a></p>\r\n')
    expect(mt.eom_check(conn, MT_HDRADD, "X-Mailtap-Ref") or mt.eom_check(conn, MT_HDRINSERT, "X-Mailtap-Ref"),
      "X-Mailtap-Ref in message " .. round)
    expect(mt.eom_check(conn, MT_BODYCHANGE), "a new body in message " .. round)
    mt.abort(conn) -- as Postfix does, also after a message that was accepted
  end

  -- Given up in the middle: nothing of it may reach the next message.
  begin("4jYJlt4VZLz1SRr3", "news@shop.example")
  ok(mt.bodystring(conn, '<p><a href="https://shop.example/left'), "body")
  mt.abort(conn)

  begin("4jYJlt4VZLz1SRr4", "somebody@elsewhere.example")
  expect(mt.getreply(conn) == SMFIR_ACCEPT, "another sender's domain let go at the end of its headers")
  mt.disconnect(conn)
end

-- miltertest ends with status 1 and no word on an error that is not caught.
local fine, why = pcall(run)
if not fine then
  mt.echo("FAILED: wanted " .. tostring(why))
  error(why)
end
