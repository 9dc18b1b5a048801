/* One message of a conversation. */
#ifndef DMS_MESSAGE_H
#define DMS_MESSAGE_H

typedef struct {
    const char *role; /* "system", "user" or "assistant" */
    const char *content;
    const char *reasoning; /* what the assistant thought before it said `content`; or NULL */
} dms_message;

#endif
